package fault

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// How a clock is shifted. All processes of a machine share its wall clock (a time namespace shifts only clocks that go
// on), and nobody wants the real one to jump. But a Go program reads it by a function that the kernel maps into each
// process, the vDSO (vdso(7)), and that mapping is the process' own as soon as it is written to. So the beginning of the function
// becomes a jump to another one, in the unused end of the same mapping: it asks the kernel, and adds the shift to what
// CLOCK_REALTIME is. Everything in the process sees it, etcd and all libraries included: a certificate's validity, a
// lease's renewal, a token's expiry. What measures time by a clock that goes on (time.Since, timers, raft) does not, as
// when a real clock is set. Times that the kernel stamps, such as those of files, are as they were.

// canShiftClocks tells why no clock can be shifted here, if none can.
func canShiftClocks() error {
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("clocks are shifted on amd64 only, and this machine is %s", runtime.GOARCH)
	}
	own, err := openVDSO(os.Getpid())
	if err != nil {
		return err
	}
	return own.close()
}

// shiftClock sets by how much a process' wall clock is ahead of the machine's: 0 not at all.
func shiftClock(pid int, by time.Duration) (err error) {
	if runtime.GOARCH != "amd64" {
		return canShiftClocks()
	}
	v, err := openVDSO(pid)
	if errors.Is(err, os.ErrNotExist) && by == 0 {
		return nil // the process has ended
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.close()) }()
	if by == 0 {
		return v.whileStopped(func() error { return v.write(v.function, v.original) })
	}
	return v.whileStopped(func() error {
		// Whoever jumps must find where to.
		if err := v.write(v.spare, shifted(by)); err != nil {
			return err
		}
		return v.write(v.function, jump(v.function, v.spare))
	})
}

// shifted is clock_gettime(2) with a shift of CLOCK_REALTIME, as amd64's machine code.
func shifted(by time.Duration) []byte {
	code := []byte{
		0xb8, unix.SYS_CLOCK_GETTIME, 0, 0, 0, // mov eax, clock_gettime
		0x0f, 0x05, // syscall
		0x85, 0xff, // test edi, edi: is it CLOCK_REALTIME, which is 0?
		0x75, 0x0d, // jne to the end
		0x48, 0xba, // mov rdx, the seconds
	}
	code = binary.LittleEndian.AppendUint64(code, uint64(by/time.Second))
	return append(code,
		0x48, 0x01, 0x16, // add [rsi], rdx
		0xc3, // ret
	)
}

const jumpSize = 5

// jump is machine code that stands at one address and goes on at another one.
func jump(at, to uint64) []byte {
	return binary.LittleEndian.AppendUint32([]byte{0xe9}, uint32(int32(int64(to)-int64(at)-jumpSize)))
}

// vdso is the mapping of a process.
type vdso struct {
	pid      int
	memory   *os.File
	function uint64 // where the function begins
	original []byte // its first bytes, as they are in processes that nobody has changed
	spare    uint64 // room for some code
}

// spareSize is more than the code of [shifted].
const spareSize = 64

// openVDSO finds the function and the room in a process. Our own mapping is the same, at another address.
func openVDSO(pid int) (*vdso, error) {
	own, err := readVDSO(os.Getpid())
	if err != nil {
		return nil, err
	}
	file, err := elf.NewFile(bytes.NewReader(own.image))
	if err != nil {
		return nil, fmt.Errorf("read the vDSO: %w", err)
	}
	symbols, err := file.DynamicSymbols()
	if err != nil {
		return nil, fmt.Errorf("read the vDSO's symbols: %w", err)
	}
	spare := len(own.image) - spareSize
	if len(bytes.Trim(own.image[spare:], "\x00")) > 0 {
		return nil, errors.New("this kernel's vDSO has no room for another function")
	}
	for _, s := range symbols {
		if s.Name != "__vdso_clock_gettime" || s.Value+jumpSize > uint64(len(own.image)) {
			continue
		}
		at, err := findVDSO(pid)
		if err != nil {
			return nil, err
		}
		memory, err := os.OpenFile(procFile(pid, "mem"), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		return &vdso{pid, memory, at.start + s.Value, own.image[s.Value : s.Value+jumpSize], at.start + uint64(spare)}, nil
	}
	return nil, errors.New("this kernel's vDSO has no __vdso_clock_gettime")
}

func (v *vdso) close() error { return v.memory.Close() }

func (v *vdso) write(at uint64, code []byte) error {
	if _, err := v.memory.WriteAt(code, int64(at)); err != nil {
		return fmt.Errorf("write to the memory of process %d: %w", v.pid, err)
	}
	return nil
}

// stopTimeout bounds how long a process takes to stop, with none of its threads in the midst of the function's beginning.
const stopTimeout = 10 * time.Second

// whileStopped does something while no thread of the process runs. It takes less than a millisecond mostly.
func (v *vdso) whileStopped(do func() error) error {
	for deadline := time.Now().Add(stopTimeout); ; {
		if err := unix.Kill(v.pid, unix.SIGSTOP); err != nil {
			return fmt.Errorf("stop process %d: %w", v.pid, err)
		}
		err := v.quiet(deadline)
		if err == nil {
			err = do()
		}
		if cerr := unix.Kill(v.pid, unix.SIGCONT); cerr != nil {
			return errors.Join(err, fmt.Errorf("continue process %d: %w", v.pid, cerr))
		}
		if !errors.Is(err, errBusy) || time.Now().After(deadline) {
			return err
		}
	}
}

// errBusy: a thread has begun the function, and would go on in the midst of another instruction.
var errBusy = errors.New("it is reading its clock all the time")

// quiet waits until all threads have stopped.
func (v *vdso) quiet(deadline time.Time) error {
	for {
		tasks, err := filepath.Glob(procFile(v.pid, "task/*"))
		if err != nil || len(tasks) == 0 {
			return fmt.Errorf("process %d has ended", v.pid)
		}
		running := 0
		for _, task := range tasks {
			at, stopped := where(task)
			if !stopped {
				running++
			} else if at > v.function && at < v.function+jumpSize {
				return errBusy
			}
		}
		if running == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d does not stop", v.pid)
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// where tells at which instruction a thread has stopped. One that has ended stands nowhere.
func where(task string) (at uint64, stopped bool) {
	stat, err := os.ReadFile(filepath.Join(task, "stat"))
	if err != nil {
		return 0, true //nolint:nilerr // it has ended
	}
	// The state stands behind the name, which may hold anything.
	state := strings.TrimSpace(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if state == "" || !strings.Contains("TtZX", state[:1]) {
		return 0, false
	}
	// The last word is the instruction (proc_pid_syscall(5)).
	call, err := os.ReadFile(filepath.Join(task, "syscall"))
	fields := strings.Fields(string(call))
	if err != nil || len(fields) == 0 || fields[0] == "running" {
		return 0, err != nil
	}
	at, err = strconv.ParseUint(fields[len(fields)-1], 0, 64)
	return at, err == nil
}

// mapping is where the vDSO is, and what is in it.
type mapping struct {
	start, end uint64
	image      []byte
}

func procFile(pid int, name string) string { return filepath.Join("/proc", strconv.Itoa(pid), name) }

func findVDSO(pid int) (m mapping, err error) {
	maps, err := os.ReadFile(procFile(pid, "maps"))
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(maps)) {
		if strings.HasSuffix(line, "[vdso]\n") {
			_, err := fmt.Sscanf(line, "%x-%x ", &m.start, &m.end)
			return m, err
		}
	}
	return m, fmt.Errorf("process %d has no vDSO", pid)
}

func readVDSO(pid int) (m mapping, err error) {
	if m, err = findVDSO(pid); err != nil {
		return m, err
	}
	memory, err := os.Open(procFile(pid, "mem"))
	if err != nil {
		return m, err
	}
	defer func() { _ = memory.Close() }()
	m.image = make([]byte, m.end-m.start)
	_, err = memory.ReadAt(m.image, int64(m.start))
	return m, err
}
