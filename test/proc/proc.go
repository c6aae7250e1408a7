// Package proc tells what processes weigh and what they have spent, as the kernel accounts for it.
package proc

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Memory is what processes weigh, in MB of 1e6 bytes.
type Memory struct {
	Private      float64 // anonymous: their own heaps, stacks and data
	Proportional float64 // with pages of files, which those who map them share
}

// Weigh sums the memory of processes.
func Weigh(pids ...int) (Memory, error) {
	var sum Memory
	for _, pid := range pids {
		if err := sum.add(pid); err != nil {
			return sum, fmt.Errorf("memory of process %d: %w", pid, err)
		}
	}
	return sum, nil
}

func (m *Memory) add(pid int) error {
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
			m.Proportional += kb * 1024 / 1e6
		} else {
			m.Private += kb * 1024 / 1e6
		}
	}
	return scan.Err()
}

// CPU is the time that processes have used, user and system, all threads, to the clock tick.
func CPU(pids ...int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
		}
		fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		if len(fields) < 13 {
			return 0, fmt.Errorf("CPU time of process %d: its stat is short", pid)
		}
		for _, field := range fields[11:13] {
			ticks, err := strconv.Atoi(field)
			if err != nil {
				return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
			}
			// USER_HZ is 100 on every architecture that Linux' ABI knows for us.
			sum += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	return sum, nil
}
