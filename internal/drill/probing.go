package drill

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"barque.dev/internal/drill/check"
	"barque.dev/internal/drill/probe"
)

const (
	answerTimeout = 3 * time.Second
	probeName     = "barque-drill"
)

// probing does something while a prober writes and another one reads at the virtual IP. Should one of them
// find that an acknowledged write is lost, what is done is broken off, and the verdict says so.
func (d *drill) probing(ctx context.Context, do func(context.Context) error) error {
	config, err := d.cluster.Config()
	if err != nil {
		return err
	}
	certificates, err := rest.TLSConfigFor(config)
	if err != nil {
		return fmt.Errorf("use the kubeconfig's certificates: %w", err)
	}
	chain, err := probe.NewChain(ctx, probe.New(certificates, config.Host), metav1.NamespaceDefault, probeName)
	if err != nil {
		return fmt.Errorf("begin to write at the virtual IP: %w", err)
	}
	probing, stop := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	keep := func(g *gauge, what string, keep func(context.Context, chan<- time.Time) error) {
		done := make(chan time.Time, 16)
		wg.Go(func() {
			for at := range done {
				g.ack(at)
			}
		})
		wg.Go(func() {
			if err := keep(probing, done); err != nil {
				stop(fmt.Errorf("%s at the virtual IP: %w", what, err))
			}
		})
	}
	keep(d.writes, "writes", chain.KeepWriting)
	keep(d.reads, "reads", func(ctx context.Context, done chan<- time.Time) error {
		return chain.KeepReading(ctx, probe.New(certificates, config.Host), done)
	})
	err = do(probing)
	stop(nil)
	wg.Wait()
	cause := context.Cause(probing)
	if ctx.Err() == nil && cause != nil && !errors.Is(cause, context.Canceled) {
		if errors.Is(cause, probe.ErrLost) {
			d.verdict.Add(check.Verdict{Violations: []check.Violation{{Rule: check.Lost, Key: probeName, What: cause.Error()}}})
		}
		return cause
	}
	return err
}
