package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// memory is what processes weigh, in MB of 1e6 bytes.
type memory struct {
	private      float64 // anonymous: their own heaps, stacks and data
	proportional float64 // with pages of files, which those who map them share
}

func (p *plane) memory() (memory, error) {
	var sum memory
	for _, c := range p.processes {
		if err := sum.add(c.cmd.Process.Pid); err != nil {
			return sum, fmt.Errorf("memory of %s: %w", c.name, err)
		}
	}
	return sum, nil
}

func (m *memory) add(pid int) error {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	scan := bufio.NewScanner(f)
	for scan.Scan() {
		fields := strings.Fields(scan.Text())
		if len(fields) < 2 || fields[0] != "Pss:" && fields[0] != "Anonymous:" {
			continue
		}
		kb, err := strconv.ParseFloat(fields[1], 64)
		if err != nil {
			return err
		}
		if fields[0] == "Pss:" {
			m.proportional += kb * 1024 / 1e6
		} else {
			m.private += kb * 1024 / 1e6
		}
	}
	return scan.Err()
}

// cpu is the CPU time that all processes of the plane have used, to the scheduler's clock tick.
func (p *plane) cpu() (time.Duration, error) {
	var sum time.Duration
	for _, c := range p.processes {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
		if err != nil {
			return 0, fmt.Errorf("CPU time of %s: %w", c.name, err)
		}
		fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		if len(fields) < 13 {
			return 0, fmt.Errorf("CPU time of %s: its stat is short", c.name)
		}
		for _, field := range fields[11:13] {
			ticks, err := strconv.Atoi(field)
			if err != nil {
				return 0, fmt.Errorf("CPU time of %s: %w", c.name, err)
			}
			sum += time.Duration(ticks) * 10 * time.Millisecond // USER_HZ is 100
		}
	}
	return sum, nil
}
