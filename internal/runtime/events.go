package runtime

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Events calls handle, one call at a time and in order, for every container or sandbox that
// the runtime creates, starts, sees ending or removes, until ctx ends, the runtime goes away,
// or handle returns an error, which it returns. subscribed, unless nil, is called once the
// runtime has answered.
//
// containerd keeps what happens while it has no subscriber at all for five minutes, and other
// runtimes not at all, so whoever needs the whole picture lists when subscribed is called, each
// time that he calls Events anew. A handler should be quick: the runtime holds back the events
// of all subscribers for a slow one.
func (c *Client) Events(ctx context.Context, subscribed func(), handle func(*cri.ContainerEventResponse) error) error {
	const op = "watch events of container runtime"
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.GetContainerEvents(ctx, &cri.GetEventsRequest{})
	if err != nil {
		return fail(ctx, op, c.endpoint, err)
	}
	// The runtime sends no headers before the first event, so nothing tells that it took the
	// subscription. A call that was answered after it, on the same connection, is the next best.
	if _, err := c.Version(ctx, &cri.VersionRequest{Version: "v1"}); err != nil {
		return fail(ctx, op, c.endpoint, err)
	}
	if subscribed != nil {
		subscribed()
	}
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return &Error{Op: op, Object: c.endpoint, Code: codes.Unavailable, Message: "the container runtime ended the stream", cause: err}
		}
		if err != nil {
			return fail(ctx, op, c.endpoint, err)
		}
		if err := handle(event); err != nil {
			return err
		}
	}
}
