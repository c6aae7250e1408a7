package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Machine is one member of a local cluster.
type Machine struct {
	Name  string     `json:"name"`
	Role  Role       `json:"role"`
	IP    netip.Addr `json:"ip"`
	Index int        `json:"index"`

	cluster *Cluster
}

// DataDir is the machine's --data-dir.
func (m *Machine) DataDir() string { return filepath.Join(m.cluster.Dir, m.Name) }

// LogFile holds what the machine's process prints.
func (m *Machine) LogFile() string { return filepath.Join(m.cluster.Dir, m.Name+".log") }

// NetNS is the name of the machine's network namespace, as `ip netns` shows it.
func (m *Machine) NetNS() string { return "barque-" + m.cluster.ID + "-" + m.Name }

// link is the host's end of the machine's cable; at most 15 bytes.
func (m *Machine) link() string { return fmt.Sprintf("bq%s-%d", m.cluster.ID, m.Index) }

func (m *Machine) pidFile() string { return filepath.Join(m.cluster.Dir, m.Name+".pid") }

// joined tells whether the machine has been a member of the cluster before.
func (m *Machine) joined() bool {
	_, err := os.Stat(filepath.Join(m.DataDir(), "joined"))
	return err == nil
}

// Left tells whether the machine left the cluster by `barque leave`, and still has its data.
func (m *Machine) Left() bool {
	_, err := os.Stat(filepath.Join(m.DataDir(), "left"))
	return err == nil
}

// founded tells whether any server has been a member: a second founding would make a second
// cluster.
func (c *Cluster) founded() bool {
	return slices.ContainsFunc(c.Machines, func(m *Machine) bool { return m.Role == RoleServer && m.joined() })
}

// PID is the machine's server or agent process, or 0 when none runs. A pid that was given to
// another process since is recognised by its start time. The file is missing when `barque up`
// was killed right after it had started the process, which is then found by its control group.
func (m *Machine) PID() int {
	var pid int
	var startTime string
	if data, err := os.ReadFile(m.pidFile()); err == nil {
		if _, err := fmt.Sscan(string(data), &pid, &startTime); err == nil {
			if now, err := processStart(pid); err == nil && now == startTime {
				return pid
			}
		}
	}
	for _, pid := range processesIn(m.processGroup()) {
		if m.isProcess(pid) {
			return pid
		}
	}
	return 0
}

// processGroup is the control group of the machine's own process.
func (m *Machine) processGroup() string { return m.cgroup() + "/barque" }

// isProcess tells whether the process is a barque with the machine's data directory, and not a child of
// one that is about to execute another program.
func (m *Machine) isProcess(pid int) bool {
	found, err := statOf(pid)
	if err != nil || found.session != strconv.Itoa(pid) {
		return false
	}
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	args := strings.Split(string(data), "\x00")
	i := slices.Index(args, "--data-dir")
	return err == nil && i >= 0 && i+1 < len(args) && args[i+1] == m.DataDir()
}

// Running tells whether the machine's process lives.
func (m *Machine) Running() bool { return m.PID() != 0 }

// Kill ends the machine's server or agent process, as kill -9 does; containerd and the
// containers live on.
func (m *Machine) Kill() error {
	pid := m.PID()
	if pid == 0 {
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill %s: %w", m.Name, err)
	}
	// The signal is on its way; who starts the machine again must find it ended.
	for deadline := time.Now().Add(killTimeout); ; time.Sleep(time.Millisecond) {
		if _, err := processStart(pid); err != nil {
			return nil //nolint:nilerr // it has ended
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kill %s: process %d does not end", m.Name, pid)
		}
	}
}

// killTimeout bounds how long a killed process may take to end: it may be in the midst of a write
// to a slow disk.
const killTimeout = 10 * time.Second

// PowerOff ends the whole machine at once, without a word to anybody: its cable is gone and
// so is every process, containers included, and what its kernel knew of addresses and routes.
// `barque up` starts it again.
func (m *Machine) PowerOff(ctx context.Context) error {
	if err := m.unplug(); err != nil {
		return err
	}
	if err := killCgroup(ctx, m.cgroup()); err != nil {
		return fmt.Errorf("power off %s: %w", m.Name, err)
	}
	// A process that is started straight into a control group which was killed before dies at
	// once (cgroup_post_fork compares the groups' kill_seq): the next start needs a new group.
	return errors.Join(m.clean(ctx), removeCgroup(m.cgroup()), deleteNamespace(m.NetNS()))
}

// start runs the machine's process unless it runs already. It outlives this one.
func (c *Cluster) start(ctx context.Context, o Options, m *Machine, token string) error {
	if m.Running() {
		return nil
	}
	if err := m.plug(); err != nil {
		return err
	}
	// Should the last process here have been killed with its whole group, that would kill the next, too.
	removeEmptyCgroup(m.processGroup())
	group, err := makeCgroup(m.processGroup())
	if err != nil {
		return err
	}
	defer func() { _ = group.Close() }()
	logFile, err := os.OpenFile(m.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open %s's log: %w", m.Name, err)
	}
	defer func() { _ = logFile.Close() }()

	cmd := exec.Command(o.Program, c.args(ctx, o, m, token)...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "BARQUE_NETNS="+m.NetNS(), "BARQUE_HOSTNAME="+m.Name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd())}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", m.Name, err)
	}
	startTime, err := processStart(cmd.Process.Pid)
	if err != nil {
		return fmt.Errorf("start %s: it ended at once: %s", m.Name, m.lastWords())
	}
	if err := os.WriteFile(m.pidFile(), fmt.Appendf(nil, "%d %s\n", cmd.Process.Pid, startTime), 0o600); err != nil {
		return fmt.Errorf("start %s: %w", m.Name, err)
	}
	// Reaps it, should it end while this process lives.
	go func() { _ = cmd.Wait() }()
	return ctx.Err()
}

func (c *Cluster) args(ctx context.Context, o Options, m *Machine, token string) []string {
	args := []string{"machine", string(m.Role),
		"--data-dir", m.DataDir(),
		"--node-name", m.Name,
		"--cgroup-root", m.cgroup(),
	}
	if m.Role == RoleServer {
		args = append(args, "--advertise-address", m.IP.String(), "--vip", c.VIP.String())
		args = append(args, o.ServerFlags...)
	}
	if token != "" {
		flag := "--join"
		if m.Role == RoleAgent {
			flag = "--server"
		}
		args = append(args, flag, c.entrance(ctx), "--token", token)
	} else if m.Role == RoleAgent {
		args = append(args, "--server", c.VIPURL())
	}
	return args
}

// entrance is the URL of a server that machines can join. One that has just been started may still be coming back itself.
func (c *Cluster) entrance(ctx context.Context) string {
	for _, m := range c.Machines {
		if m.Role == RoleServer && m.joined() && m.Running() && c.probe(ctx, m) == nil {
			return "https://" + netip.AddrPortFrom(m.IP, apiPort).String()
		}
	}
	return c.VIPURL()
}

// processStart is the start time of a process in clock ticks since boot, which together with
// the pid names a process for ever.
func processStart(pid int) (string, error) {
	found, err := statOf(pid)
	return found.start, err
}

// processStat is what counts here of a process' stat file (proc_pid_stat(5)).
type processStat struct {
	session string // the pid of its session's leader
	start   string // in clock ticks since boot
}

func statOf(pid int) (processStat, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return processStat{}, err
	}
	return parseStat(data)
}

// parseStat reads a process' stat file, unless the process has ended.
func parseStat(stat []byte) (processStat, error) {
	// The command's name, the second field, may hold spaces and parentheses: the others begin after the
	// last.
	const state, session, threads, start, first = 3, 6, 20, 22, 3
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) <= start-first {
		return processStat{}, errEnded
	}
	// While a thread other than the first one executes a program, the first is a zombie for a
	// moment, and the process lives: it has more threads.
	if s, n := fields[state-first], fields[threads-first]; (s == "Z" || s == "X") && (n == "0" || n == "1") {
		return processStat{}, errEnded
	}
	return processStat{session: fields[session-first], start: fields[start-first]}, nil
}

var errEnded = errors.New("the process has ended")

// waitReady waits until m's API server says that it is ready, or its process has ended.
func (c *Cluster) waitReady(ctx context.Context, m *Machine) error {
	return m.await(ctx, "ready", func() error { return c.probe(ctx, m) })
}

// waitJoined waits until a machine is a member of the cluster, or its process has ended.
func (c *Cluster) waitJoined(ctx context.Context, m *Machine) error {
	return m.await(ctx, "a member of the cluster", func() error {
		if !m.joined() {
			return errors.New("it has not joined")
		}
		return nil
	})
}

// await waits until check returns nil, or the machine's process has ended.
func (m *Machine) await(ctx context.Context, what string, check func() error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		if !m.Running() {
			return fmt.Errorf("%s ended before it was %s: %s", m.Name, what, m.lastWords())
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not %s: %w; the end of its log: %s", m.Name, what, err, m.lastWords())
		case <-tick.C:
		}
	}
}

// lastWords is the machine's last complaint, for an error message: the last line of its log that
// tells of an error, or the last one.
func (m *Machine) lastWords() string {
	data, err := os.ReadFile(m.LogFile())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	for _, line := range slices.Backward(lines) {
		own, ok := strings.CutPrefix(line, "barque: ")
		if ok || strings.Contains(line, " level=ERROR ") {
			return own
		}
	}
	return lines[len(lines)-1]
}

// Signal sends a signal to the machine's process, such as SIGSTOP and SIGCONT. It is an error if none
// runs.
func (m *Machine) Signal(s syscall.Signal) error {
	pid := m.PID()
	if pid == 0 {
		return fmt.Errorf("send %s to %s: its process does not run", s, m.Name)
	}
	if err := syscall.Kill(pid, s); err != nil {
		return fmt.Errorf("send %s to %s: %w", s, m.Name, err)
	}
	return nil
}

// Stop asks the machine's process to end, as a service manager does, and waits until it has. `barque up`
// starts it again.
func (m *Machine) Stop(ctx context.Context) error {
	pid := m.PID()
	if pid == 0 {
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stop %s: %w", m.Name, err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := processStart(pid); err != nil {
			return nil //nolint:nilerr // it has ended
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("stop %s: process %d does not end: %w", m.Name, pid, ctx.Err())
		case <-tick.C:
		}
	}
}
