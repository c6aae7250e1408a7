package relay

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	translator "k8s.io/apiserver/pkg/util/proxy"
)

// annotation that names the container which is meant when a request names none.
const defaultContainerAnnotation = "kubectl.kubernetes.io/default-container"

// Exec runs a command in a container and streams its input and output.
func (r *Relay) Exec(ctx context.Context, namespace, name string, opts *corev1.PodExecOptions, fail Fail) (http.Handler, error) {
	params := streamParams(opts.Stdin, opts.Stdout, opts.Stderr, opts.TTY)
	for _, c := range opts.Command {
		params.Add("command", c)
	}
	terminal := &translator.Options{Stdin: opts.Stdin, Stdout: opts.Stdout, Stderr: opts.Stderr, Tty: opts.TTY}
	location, err := r.containerURL(ctx, namespace, name, opts.Container, "exec", params)
	if err != nil {
		return nil, err
	}
	return r.stream(location, fail, terminal), nil
}

// Attach streams the input and output of a container's own process.
func (r *Relay) Attach(ctx context.Context, namespace, name string, opts *corev1.PodAttachOptions, fail Fail) (http.Handler, error) {
	params := streamParams(opts.Stdin, opts.Stdout, opts.Stderr, opts.TTY)
	terminal := &translator.Options{Stdin: opts.Stdin, Stdout: opts.Stdout, Stderr: opts.Stderr, Tty: opts.TTY}
	location, err := r.containerURL(ctx, namespace, name, opts.Container, "attach", params)
	if err != nil {
		return nil, err
	}
	return r.stream(location, fail, terminal), nil
}

// PortForward streams connections to ports of a pod.
func (r *Relay) PortForward(ctx context.Context, namespace, name string, opts *corev1.PodPortForwardOptions, fail Fail) (http.Handler, error) {
	pod, err := r.scheduled(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	params := url.Values{}
	if len(opts.Ports) > 0 {
		ports := make([]string, len(opts.Ports))
		for i, p := range opts.Ports {
			ports[i] = strconv.Itoa(int(p))
		}
		params.Set("port", strings.Join(ports, ","))
	}
	location, err := r.kubeletURL(ctx, pod.Spec.NodeName, "/portForward/"+pod.Namespace+"/"+pod.Name, params)
	if err != nil {
		return nil, err
	}
	return r.stream(location, fail, nil), nil
}

func streamParams(stdin, stdout, stderr, tty bool) url.Values {
	params := url.Values{}
	for _, p := range []struct {
		name string
		set  bool
	}{{"input", stdin}, {"output", stdout}, {"error", stderr}, {"tty", tty}} {
		if p.set {
			params.Set(p.name, "1")
		}
	}
	return params
}

// scheduled reads a pod that has a node.
func (r *Relay) scheduled(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	pod, err := r.objects.Pod(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	if pod.Spec.NodeName == "" {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned", name))
	}
	return pod, nil
}

// containerURL is what a kubelet calls one of its containers.
func (r *Relay) containerURL(ctx context.Context, namespace, name, container, verb string, params url.Values) (*url.URL, error) {
	pod, err := r.objects.Pod(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	if container, err = chooseContainer(pod, container); err != nil {
		return nil, err
	}
	if pod.Spec.NodeName == "" {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned", name))
	}
	return r.kubeletURL(ctx, pod.Spec.NodeName, fmt.Sprintf("/%s/%s/%s/%s", verb, pod.Namespace, pod.Name, container), params)
}

// chooseContainer checks the name of a container, or picks the one that is meant by none.
func chooseContainer(pod *corev1.Pod, container string) (string, error) {
	var all, plain, initial []string
	for i := range pod.Spec.InitContainers {
		initial = append(initial, pod.Spec.InitContainers[i].Name)
	}
	for i := range pod.Spec.Containers {
		plain = append(plain, pod.Spec.Containers[i].Name)
	}
	all = append(append(all, initial...), plain...)
	for i := range pod.Spec.EphemeralContainers {
		all = append(all, pod.Spec.EphemeralContainers[i].Name)
	}
	if container != "" {
		if !slices.Contains(all, container) {
			return "", apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s", container, pod.Name))
		}
		return container, nil
	}
	if name := pod.Annotations[defaultContainerAnnotation]; slices.Contains(all, name) {
		return name, nil
	}
	switch {
	case len(plain) == 1:
		return plain[0], nil
	case len(plain) == 0:
		return "", apierrors.NewBadRequest(fmt.Sprintf("a container name must be specified for pod %s", pod.Name))
	}
	msg := fmt.Sprintf("a container name must be specified for pod %s, choose one of: %s", pod.Name, plain)
	if len(initial) > 0 {
		msg += fmt.Sprintf(" or one of the init containers: %s", initial)
	}
	return "", apierrors.NewBadRequest(msg)
}

// logParams are the query parameters by which a kubelet knows log options.
func logParams(opts *corev1.PodLogOptions) url.Values {
	params := url.Values{}
	flag := func(name string, set bool) {
		if set {
			params.Set(name, "true")
		}
	}
	number := func(name string, v *int64) {
		if v != nil {
			params.Set(name, strconv.FormatInt(*v, 10))
		}
	}
	flag("follow", opts.Follow)
	flag("previous", opts.Previous)
	flag("timestamps", opts.Timestamps)
	number("sinceSeconds", opts.SinceSeconds)
	number("tailLines", opts.TailLines)
	number("limitBytes", opts.LimitBytes)
	if opts.SinceTime != nil {
		params.Set("sinceTime", opts.SinceTime.Format(time.RFC3339))
	}
	if opts.Stream != nil {
		params.Set("stream", *opts.Stream)
	}
	return params
}
