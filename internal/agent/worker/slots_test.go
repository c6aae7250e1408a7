package worker

import (
	"context"
	"errors"
	"testing"
)

func TestSlots(t *testing.T) {
	s := make(slots, 2)
	first, err := s.take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.take(t.Context()); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.take(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("a third slot of two: %v", err)
	}
	first()
	if _, err := s.take(t.Context()); err != nil {
		t.Errorf("the slot that was given back: %v", err)
	}
}
