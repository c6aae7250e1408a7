// Package run holds the shape of everything in Barque that keeps going: a service runs until
// its context ends, says once when it is ready, and returns only when every goroutine it
// started has ended.
//
// A [Group] starts services one after the other, each when the one before is ready, and stops
// them in reverse order, so that nothing outlives what it stands on.
package run

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
)

// A Service is a named activity that lasts as long as its context.
type Service struct {
	// Name is used in errors and logs, such as "apiserver".
	Name string

	// Run does the work until ctx ends. It calls ready once, when others may rely on the
	// service, and returns only when every goroutine it started has ended. An error from
	// a context that ended is not a failure.
	Run func(ctx context.Context, ready func()) error
}

// Func is a Service that is ready as soon as it runs.
func Func(name string, f func(ctx context.Context) error) Service {
	return Service{Name: name, Run: func(ctx context.Context, ready func()) error {
		ready()
		return f(ctx)
	}}
}

// Group runs services in order. It returns nil when ctx ended and all of them stopped
// cleanly; otherwise the first failure, once all have stopped. A service that returns while
// ctx lives, even without an error, ends the group: the others stand on it. ready is called
// when the last service is ready.
func Group(ctx context.Context, log *slog.Logger, ready func(), services ...Service) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)

	var stops []func()
	defer func() {
		for i := len(stops) - 1; i >= 0; i-- {
			stops[i]()
		}
	}()

	var mu sync.Mutex
	var failure error
	record := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if failure == nil {
			failure = err
		}
		fail(err)
	}

	started := 0
	for _, s := range services {
		isReady := make(chan struct{})
		done := make(chan struct{})
		// A service's own context outlives the group's, so that it can be stopped in its turn.
		sctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		var once sync.Once
		go func() {
			defer close(done)
			err := s.Run(sctx, func() { once.Do(func() { close(isReady) }) })
			switch {
			case sctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)):
			case err != nil:
				record(fmt.Errorf("%s: %w", s.Name, err))
			default:
				record(fmt.Errorf("%s: stopped unexpectedly", s.Name))
			}
		}()
		stops = append(stops, func() { cancel(); <-done })
		select {
		case <-isReady:
			log.Debug("service ready", "service", s.Name)
			started++
			continue
		case <-done:
		case <-ctx.Done():
		}
		break
	}
	if started == len(services) && ctx.Err() == nil {
		ready()
	}
	<-ctx.Done()
	for i := len(stops) - 1; i >= 0; i-- {
		stops[i]()
	}
	stops = nil
	mu.Lock()
	defer mu.Unlock()
	return failure
}
