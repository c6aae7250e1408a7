package integration

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// cli is a kubectl that works in one namespace of the shared cluster, through the virtual IP.
type cli struct {
	t       testing.TB
	program []string // stock kubectl unless given
	ns      string
	env     []string
}

func newCLI(t testing.TB) cli { return cli{t: t, program: []string{kubectl}, ns: shared.namespace(t)} }

func (k cli) command(ctx context.Context, args ...string) *exec.Cmd {
	all := append(append([]string{}, k.program...), "--kubeconfig", shared.Kubeconfig(), "--namespace", k.ns)
	all = append(all, args...)
	cmd := exec.CommandContext(ctx, all[0], all[1:]...)
	cmd.Env = append(os.Environ(), k.env...)
	cmd.WaitDelay = time.Second
	return cmd
}

// try runs a command with input and returns all that it prints.
func (k cli) try(input string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(k.t.Context(), time.Minute)
	defer cancel()
	cmd := k.command(ctx, args...)
	cmd.Stdin = strings.NewReader(input)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// run runs a command that must succeed.
func (k cli) run(args ...string) string {
	k.t.Helper()
	return k.runWith("", args...)
}

func (k cli) runWith(input string, args ...string) string {
	k.t.Helper()
	out, err := k.try(input, args...)
	if err != nil {
		k.t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// expect runs a command that must succeed and print something that matches.
func (k cli) expect(pattern string, args ...string) string {
	k.t.Helper()
	out := k.run(args...)
	if !regexp.MustCompile(pattern).MatchString(out) {
		k.t.Errorf("kubectl %s: want %s, got\n%s", strings.Join(args, " "), pattern, out)
	}
	return out
}

// refuse runs a command that must fail with this exit code and print exactly this, or something
// that matches it if it begins with ^ or (?.
func (k cli) refuse(code int, want string, args ...string) {
	k.t.Helper()
	k.refuseWith("", code, want, args...)
}

func (k cli) refuseWith(input string, code int, want string, args ...string) {
	k.t.Helper()
	out, err := k.try(input, args...)
	if got := exitCode(err); got != code {
		k.t.Errorf("kubectl %s: exit code %d (%v), want %d\n%s", strings.Join(args, " "), got, err, code, out)
	}
	out = strings.TrimSpace(out)
	if strings.HasPrefix(want, "^") || strings.HasPrefix(want, "(?") {
		if !regexp.MustCompile(want).MatchString(out) {
			k.t.Errorf("kubectl %s: want %s, got\n%s", strings.Join(args, " "), want, out)
		}
	} else if out != want {
		k.t.Errorf("kubectl %s: want\n%s\ngot\n%s", strings.Join(args, " "), want, out)
	}
}

func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if exit, ok := err.(*exec.ExitError); ok {
		return exit.ExitCode()
	}
	return -1
}

// process is a command that runs beside the test.
type process struct {
	t      testing.TB
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	cancel func()
	done   chan struct{}
	err    error

	mu  sync.Mutex
	out bytes.Buffer
}

func (p *process) Write(data []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(data)
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// start runs a command beside the test, until it ends by itself or the test does.
func (k cli) start(args ...string) *process {
	k.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{t: k.t, cmd: k.command(ctx, args...), cancel: cancel, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p, p
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		k.t.Fatal(err)
	}
	p.launch()
	return p
}

func (p *process) launch() {
	p.t.Helper()
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	p.t.Cleanup(p.stop)
}

func (p *process) stop() {
	p.cancel()
	<-p.done
}

// see waits until the output matches, and returns the match's groups.
func (p *process) see(pattern string) []string {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	var found []string
	eventually(p.t, 20*time.Second, "see "+pattern, func() error {
		if found = re.FindStringSubmatch(p.output()); found == nil {
			return fmt.Errorf("output so far:\n%s", p.output())
		}
		return nil
	})
	return found
}

func (p *process) say(text string) {
	p.t.Helper()
	if _, err := io.WriteString(p.stdin, text); err != nil {
		p.t.Fatal(err)
	}
}

// end waits until the command has ended by itself and returns its exit code.
func (p *process) end() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		p.t.Fatalf("%v does not end; output so far:\n%s", p.cmd.Args, p.output())
	}
	return exitCode(p.err)
}

// webManifest is a deployment of two pods that serve HTTP and write a line a tenth of a second,
// behind a service.
const webManifest = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: ` + busyboxImage + `
        command: [sh, -c, "mkdir /tmp/w; echo hello > /tmp/w/index.html; httpd -p 8080 -h /tmp/w; echo started; while true; do echo tick; usleep 100000; done"]
        ports: [{containerPort: 8080, name: http}]
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
`

// web deploys webManifest, waits until both pods serve and returns their names.
func (k cli) web() []string {
	k.t.Helper()
	k.runWith(webManifest, "apply", "-f", "-")
	k.run("rollout", "status", "deploy/web", "--timeout=40s")
	return strings.Fields(k.run("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.name}"))
}
