package runtime

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var (
	// ErrNotFound says that the runtime knows no such sandbox, container or image.
	ErrNotFound = errors.New("not found")

	// ErrUnavailable says that the runtime cannot be reached, such as while containerd
	// restarts. The call may be repeated; whether it had an effect is not known.
	ErrUnavailable = errors.New("container runtime unavailable")

	// ErrTimeout says that the call, or the command it ran, took longer than its limit.
	ErrTimeout = errors.New("timed out")
)

// Error is a failed call. It matches [ErrNotFound], [ErrUnavailable] and [ErrTimeout] by
// errors.Is, and carries its gRPC status.
type Error struct {
	// Op is the operation, in words: "start container".
	Op string
	// Object is the name or id of what it was done to; it may be empty.
	Object string
	// Code is what the runtime answered.
	Code codes.Code
	// Message is the runtime's own explanation.
	Message string

	cause error
}

// Error implements error.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Object != "" {
		b.WriteString(" ")
		b.WriteString(e.Object)
	}
	b.WriteString(": ")
	b.WriteString(e.Message)
	return b.String()
}

// Is implements the contract of errors.Is.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrNotFound:
		return e.Code == codes.NotFound
	case ErrUnavailable:
		return e.Code == codes.Unavailable
	case ErrTimeout:
		return e.Code == codes.DeadlineExceeded
	}
	return false
}

// Unwrap returns the error as the transport gave it.
func (e *Error) Unwrap() error { return e.cause }

// GRPCStatus makes status.Code and status.FromError work on e.
func (e *Error) GRPCStatus() *status.Status { return status.New(e.Code, e.Message) }

// fail turns the error of a call into an [*Error]; nil stays nil. ctx is the
// caller's: if that ended, the error says so, instead of blaming the runtime.
func fail(ctx context.Context, op, object string, err error) error {
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("%s: %w", strings.TrimSpace(op+" "+object), cause)
	}
	s, ok := status.FromError(err)
	if !ok {
		return &Error{Op: op, Object: object, Code: codes.Unknown, Message: err.Error(), cause: err}
	}
	message := s.Message()
	switch s.Code() {
	case codes.DeadlineExceeded:
		message = "timed out: " + message
	case codes.Unavailable:
		message = "the container runtime cannot be reached: " + message
	case codes.Unimplemented:
		message = "the container runtime does not know how: " + message
	}
	return &Error{Op: op, Object: object, Code: s.Code(), Message: message, cause: err}
}
