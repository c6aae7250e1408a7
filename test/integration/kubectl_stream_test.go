package integration

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestKubectlLogs(t *testing.T) {
	t.Parallel()
	k := newCLI(t)
	pods := k.web()
	k.expect(`^(tick\n){2}$`, "logs", pods[0], "--tail=2")
	k.expect(`^started\n(tick\n)+$`, "logs", pods[0], "-c", "main")
	k.expect(`^started\n`, "logs", pods[0], "--limit-bytes=8")
	k.expect(`^(20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z tick\n){3}$`, "logs", pods[0], "--tail=3", "--timestamps")
	out := k.expect(`^(\[pod/web-\S+/main\] tick\n){4}$`, "logs", "-l", "app=web", "--tail=2", "--prefix")
	if !strings.Contains(out, pods[0]) || !strings.Contains(out, pods[1]) {
		t.Errorf("logs by selector: %s", out)
	}
	k.refuse(1, `Error from server (BadRequest): previous terminated container "main" in pod "`+pods[0]+`" not found`, "logs", pods[0], "--previous")
	k.refuse(1, `error: container other is not valid for pod `+pods[0]+` out of: main`, "logs", pods[0], "-c", "other")

	follow := k.start("logs", "-f", pods[0], "--since=1s")
	follow.see(`(tick\n){12}`)
	k.runWith(`
apiVersion: v1
kind: Pod
metadata: {name: twice}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - name: main
    image: `+busyboxImage+`
    volumeMounts: [{name: v, mountPath: /v}]
    command: [sh, -c, "if [ -e /v/was ]; then echo second; sleep 1000; else echo first; touch /v/was; exit 3; fi"]
`, "apply", "-f", "-")
	k.run("wait", "--for=jsonpath={.status.containerStatuses[0].restartCount}=1", "pod/twice", "--timeout=40s")
	k.expect(`^first\n$`, "logs", "twice", "--previous")
	eventually(t, 20*time.Second, "log of the second run", func() error {
		if out := k.run("logs", "twice"); out != "second\n" {
			return fmt.Errorf("%q", out)
		}
		return nil
	})
}

func TestKubectlExec(t *testing.T) {
	t.Parallel()
	k := newCLI(t)
	pod := k.web()[0]
	k.refuse(7, "(?s)out.*command terminated with exit code 7", "exec", pod, "--", "sh", "-c", "echo out; exit 7")
	if out := k.runWith("over there", "exec", "-i", pod, "--", "cat"); out != "over there" {
		t.Errorf("exec -i: %q", out)
	}
	k.expect(`^web-\S+\n$`, "exec", "deploy/web", "-c", "main", "--", "hostname")
	k.refuse(1, `Error from server (NotFound): pods "nothing" not found`, "exec", "nothing", "--", "ls")
	k.refuse(1, `(?s)error: Internal error occurred: .*exec: "nothing": executable file not found in \$PATH`, "exec", pod, "--", "nothing")
	big := strings.Repeat("0123456789abcdef", 1<<16) // more than any window or buffer
	if out := k.runWith(big, "exec", "-i", pod, "--", "cat"); out != big {
		t.Errorf("1 MiB through cat came back as %d bytes", len(out))
	}

	tty := k.startTTY("exec", "-it", pod, "--", "sh")
	tty.say("test -t 0 && echo is a ter''minal\n")
	tty.see(`is a terminal`)
	tty.say("until busybox stty size | grep '33 123'; do usleep 100000; done; echo di''d\n")
	tty.see(`33 123\s+did`)
	tty.say("echo slee''ping; sleep 100\n")
	tty.see(`sleeping`)
	tty.say("\x03") // interrupts the sleep, not the shell
	tty.say("echo sti''ll; exit 5\n")
	tty.see(`still`)
	if code := tty.end(); code != 5 {
		t.Errorf("exit code %d of a shell in a terminal", code)
	}
}

// startTTY starts a command in a terminal of 33 rows and 123 columns.
func (k cli) startTTY(args ...string) *process {
	k.t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		k.t.Fatal(err)
	}
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		k.t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		k.t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 33, Col: 123}); err != nil {
		k.t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		k.t.Fatal(err)
	}
	p := &process{t: k.t, cmd: k.command(k.t.Context(), args...), stdin: master, cancel: func() {}, done: make(chan struct{})}
	p.cancel = func() { _ = p.cmd.Process.Kill() }
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = slave, slave, slave
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	k.t.Cleanup(func() { _ = master.Close() })
	p.launch()
	_ = slave.Close()
	go func() { _, _ = io.Copy(p, master) }() // ends when the terminal's last user has gone
	return p
}

func TestKubectlCopy(t *testing.T) {
	t.Parallel()
	k := newCLI(t)
	pod := k.web()[0]
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "there", "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	content := strings.Repeat("some bytes\n", 50000)
	if err := os.WriteFile(filepath.Join(dir, "there", "sub", "file"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	k.run("cp", filepath.Join(dir, "there"), pod+":/tmp/there")
	k.expect(`^550000 `, "exec", pod, "--", "wc", "-c", "/tmp/there/sub/file")
	k.run("cp", pod+":/tmp/there", filepath.Join(dir, "back"), "-c", "main")
	if back, err := os.ReadFile(filepath.Join(dir, "back", "sub", "file")); err != nil || string(back) != content {
		t.Errorf("came back as %d bytes, %v", len(back), err)
	}
}

func TestKubectlAttach(t *testing.T) {
	t.Parallel()
	k := newCLI(t)
	pod := k.web()[0]
	k.start("attach", pod).see(`tick\ntick\n`)

	run := k.start("run", "talk", "--image="+busyboxImage, "--rm", "-i", "--restart=Never", "--", "sh", "-c", "while read line; do echo heard $line; done; exit 4")
	run.see(`try pressing enter`)
	run.say("one\n")
	run.see(`heard one`)
	run.say("two\n")
	run.see(`heard two`)
	_ = run.stdin.Close()
	if code := run.end(); code != 4 {
		t.Errorf("exit code %d of run --rm -i:\n%s", code, run.output())
	}
	run.see(`pod "talk" deleted`)
	k.refuse(1, `Error from server (NotFound): pods "talk" not found`, "get", "pod", "talk")
}

func TestKubectlPortForward(t *testing.T) {
	t.Parallel()
	k := newCLI(t)
	pod := k.web()[0]
	for _, target := range [][]string{{"pod/" + pod, ":8080"}, {"service/web", ":80"}, {"deploy/web", ":http"}} {
		p := k.start(append([]string{"port-forward"}, target...)...)
		port := p.see(`Forwarding from 127.0.0.1:(\d+) -> 8080`)[1]
		for range 3 {
			fetch(t, "http://127.0.0.1:"+port+"/", "hello\n")
		}
	}
	proxy := k.start("proxy", "--port=0")
	at := proxy.see(`Starting to serve on (\S+)`)[1]
	base := "http://" + at + "/api/v1/namespaces/" + k.ns
	fetch(t, base+"/services/web:80/proxy/index.html", "hello\n")
	fetch(t, base+"/pods/"+pod+":8080/proxy/", "hello\n")
}

func fetch(t testing.TB, url, want string) {
	t.Helper()
	client := http.Client{Timeout: 10 * time.Second}
	response, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil || string(body) != want {
		t.Errorf("GET %s: %s %q, %v", url, response.Status, body, err)
	}
}

// An ephemeral container joins a running pod, and sees the processes of the one it targets.
func TestKubectlDebug(t *testing.T) {
	t.Parallel()
	k := newCLI(t)
	pod := k.web()[0]
	p := k.start("debug", pod, "--image="+busyboxImage, "--target=main", "-c", "doctor", "-i", "--", "sh")
	p.see(`try pressing enter`)
	p.say("echo so: $(cat /proc/1/cmdline)\n")
	p.see(`so: sh.?-c`)
	p.say("exit 0\n")
	p.end()
	k.run("wait", "--for=jsonpath={.status.ephemeralContainerStatuses[0].state.terminated.exitCode}=0", "pod/"+pod, "--timeout=20s")
	k.expect(`so: sh`, "logs", pod, "-c", "doctor")
	k.expect(`(?s)Ephemeral Containers:\n  doctor:.*Exit Code: +0`, "describe", "pod", pod)

	k.run("debug", pod, "--copy-to=copy", "--set-image=*="+busyboxImage, "--image="+busyboxImage, "-c", "extra", "--", "sleep", "1000")
	k.run("wait", "--for=condition=Ready", "pod/copy", "--timeout=40s")
	k.expect(`main extra`, "get", "pod", "copy", "-o", "jsonpath={.spec.containers[*].name}")
	k.run("delete", "pod", "copy", "--force")
}
