package runtime

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// execAnswer is how long a runtime may take, after a command's own timeout, to kill the
// command and say so.
const execAnswer = 10 * time.Second

// limit returns how long a call may take; zero is for ever.
func (l Limits) limit(request any) time.Duration {
	switch r := request.(type) {
	case *cri.RunPodSandboxRequest, *cri.StopPodSandboxRequest, *cri.RemovePodSandboxRequest:
		return l.Sandbox
	case *cri.PullImageRequest:
		return l.Pull
	case *cri.StopContainerRequest:
		return l.Call + seconds(r.GetTimeout())
	case *cri.ExecSyncRequest:
		if r.GetTimeout() <= 0 {
			return 0
		}
		return seconds(r.GetTimeout()) + execAnswer
	}
	return l.Call
}

// seconds turns a count from a request into a duration; nothing below zero, and no overflow.
func seconds(n int64) time.Duration {
	const most = int64(10 * 365 * 24 * time.Hour / time.Second)
	return time.Duration(min(max(n, 0), most)) * time.Second
}

// interceptUnary bounds every call and names operation and object in its error.
func (l Limits) interceptUnary(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	bounded, cancel := ctx, context.CancelFunc(func() {})
	if d := l.limit(request); d > 0 {
		bounded, cancel = context.WithTimeout(ctx, d)
	}
	defer cancel()
	err := invoke(bounded, method, request, reply, conn, opts...)
	return fail(ctx, operation(method), object(request), err)
}

// interceptObserved tells observers of every call.
func interceptObserved(observers []Observer) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		began := time.Now()
		err := invoke(ctx, method, request, reply, conn, opts...)
		for _, observe := range observers {
			observe(operation(method), time.Since(began), err)
		}
		return err
	}
}

// interceptStream names the operation in the errors of a stream. It sets no time limit:
// streams last as long as their context.
func interceptStream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := open(ctx, desc, conn, method, opts...)
	if err != nil {
		return nil, fail(ctx, operation(method), "", err)
	}
	return stream, nil
}

// operation turns the name of a gRPC method into words:
// "/runtime.v1.RuntimeService/RunPodSandbox" into "run pod sandbox".
func operation(method string) string {
	name := method[strings.LastIndexByte(method, '/')+1:]
	var b strings.Builder
	for i, r := range name {
		if r >= 'A' && r <= 'Z' {
			if i > 0 {
				b.WriteByte(' ')
			}
			r += 'a' - 'A'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// object names what a request is about: a pod or container to be made by its name, and what
// exists by its id; empty for requests about nothing in particular.
func object(request any) string {
	switch r := request.(type) {
	case *cri.RunPodSandboxRequest:
		m := r.GetConfig().GetMetadata()
		return m.GetNamespace() + "/" + m.GetName()
	case *cri.CreateContainerRequest:
		m := r.GetSandboxConfig().GetMetadata()
		return m.GetNamespace() + "/" + m.GetName() + "/" + r.GetConfig().GetMetadata().GetName()
	case interface{ GetContainerId() string }:
		return r.GetContainerId()
	case interface{ GetPodSandboxId() string }:
		return r.GetPodSandboxId()
	case interface{ GetImage() *cri.ImageSpec }:
		return r.GetImage().GetImage()
	}
	return ""
}
