// Netprobe is what the network's integration tests run in pods: a server that says who it is
// and who asks, and clients whose output the tests read.
//
//	netprobe serve                    HTTP on TCP 8080 and 9000 to 9049, echo on UDP 8081; readiness at /ready, switched by /ready/on and /ready/off
//	netprobe get URL [N]              N requests, each on a connection of its own; one line each
//	netprobe udp ADDRESS SIZE [N]     N datagrams of SIZE bytes; one line each: who answered, how many bytes came back
//	netprobe load URL                 requests until standard input ends; then "OK FAILED" and the first failure
//	netprobe host|srv|ptr NAME        what DNS says, one line each, sorted
//	netprobe api [PATH]               GET from the API at kubernetes.default with the pod's own token
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	httpPort = ":8080"
	udpPort  = ":8081"
	timeout  = 3 * time.Second

	firstMore = 9000
	morePorts = 50
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	arg := func(i int, fallback string) string {
		if i < len(args) {
			return args[i]
		}
		return fallback
	}
	number := func(i, fallback int) int {
		n, err := strconv.Atoi(arg(i, ""))
		if err != nil {
			return fallback
		}
		return n
	}
	switch arg(0, "") {
	case "serve":
		return serve()
	case "get":
		return get(arg(1, ""), number(2, 1))
	case "udp":
		return datagrams(arg(1, ""), number(2, 1), number(3, 1))
	case "load":
		return load(arg(1, ""))
	case "host", "srv", "ptr":
		return resolve(args[0], arg(1, ""))
	case "api":
		return api(arg(1, "/version"))
	}
	return errors.New("see the package comment")
}

// serve answers until the process ends. A body that a client sends is counted.
func serve() error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	packets, err := net.ListenPacket("udp", udpPort)
	if err != nil {
		return err
	}
	go echo(packets, host)
	var unready atomic.Bool
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_, _ = fmt.Fprintf(w, "%s %s %d\n", host, from, n)
		if size, err := strconv.Atoi(r.URL.Query().Get("size")); err == nil {
			_, _ = io.WriteString(w, strings.Repeat("x", size))
		}
	})
	mux.HandleFunc("/ready", func(w http.ResponseWriter, _ *http.Request) {
		if unready.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("/ready/on", func(http.ResponseWriter, *http.Request) { unready.Store(false) })
	mux.HandleFunc("/ready/off", func(http.ResponseWriter, *http.Request) { unready.Store(true) })
	ended := make(chan error)
	listen := func(address string) {
		ended <- (&http.Server{Addr: address, Handler: mux, ReadHeaderTimeout: timeout}).ListenAndServe()
	}
	go listen(httpPort)
	for i := range morePorts {
		go listen(":" + strconv.Itoa(firstMore+i))
	}
	return <-ended
}

func echo(packets net.PacketConn, host string) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := packets.ReadFrom(buf)
		if err != nil {
			return
		}
		answer := append([]byte(host+" "), buf[:n]...)
		_, _ = packets.WriteTo(answer[:min(len(answer), max(n, len(host)+1))], from)
	}
}

func client() *http.Client {
	return &http.Client{Timeout: timeout, Transport: &http.Transport{DisableKeepAlives: true}}
}

func fetch(url string) (string, error) {
	resp, err := client().Get(url)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return strings.TrimSpace(string(body)), err
}

func get(url string, n int) error {
	for range n {
		body, err := fetch(url)
		if err != nil {
			return err
		}
		line, rest, _ := strings.Cut(body, "\n")
		fmt.Println(line, len(rest))
	}
	return nil
}

func datagrams(address string, size, n int) error {
	for range n {
		conn, err := net.Dial("udp", address)
		if err != nil {
			return err
		}
		_ = conn.SetDeadline(time.Now().Add(timeout))
		buf := make([]byte, 1<<16)
		_, err = conn.Write(make([]byte, size))
		if err == nil {
			var got int
			if got, err = conn.Read(buf); err == nil {
				host, _, _ := strings.Cut(string(buf[:got]), " ")
				fmt.Println(host, got)
			}
		}
		_ = conn.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func load(url string) error {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	var ok, failed int
	var first string
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		if _, err := fetch(url); err == nil {
			ok++
		} else if failed++; first == "" {
			first = err.Error()
		}
		<-tick.C
	}
	fmt.Println(ok, failed, first)
	return nil
}

func resolve(kind, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*timeout)
	defer cancel()
	resolver := &net.Resolver{PreferGo: true}
	var lines []string
	var err error
	switch kind {
	case "host":
		lines, err = resolver.LookupHost(ctx, name)
	case "ptr":
		lines, err = resolver.LookupAddr(ctx, name)
	default:
		var records []*net.SRV
		_, records, err = resolver.LookupSRV(ctx, "", "", name)
		for _, r := range records {
			lines = append(lines, fmt.Sprintf("%s:%d", r.Target, r.Port))
		}
	}
	slices.Sort(lines)
	for _, l := range lines {
		fmt.Println(l)
	}
	return err
}

func api(path string) error {
	const dir = "/var/run/secrets/kubernetes.io/serviceaccount/"
	ca, err := os.ReadFile(dir + "ca.crt")
	if err != nil {
		return err
	}
	token, err := os.ReadFile(dir + "token")
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return errors.New("no certificate in ca.crt")
	}
	req, err := http.NewRequest(http.MethodGet, "https://kubernetes.default"+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+string(token))
	c := &http.Client{Timeout: 2 * timeout, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	fmt.Println(resp.StatusCode)
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}
