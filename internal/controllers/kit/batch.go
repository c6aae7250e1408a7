package kit

import (
	"errors"
	"sync"
)

// MaxBurst bounds how many pods one reconciliation creates or deletes.
const MaxBurst = 500

// SlowStart calls f with 0 … n-1 in batches of 1, 2, 4, … concurrent calls and stops after a
// batch in which one failed, so that n doomed writes (a quota, a webhook) cost few. It returns
// how many succeeded and the errors of the failed batch, joined. Every call has returned when
// it returns.
func SlowStart(n int, f func(i int) error) (int, error) {
	succeeded := 0
	for start, size := 0, 1; start < n; start, size = start+size, 2*size {
		size = min(size, n-start)
		failed, err := concurrently(start, size, f)
		succeeded += size - failed
		if err != nil {
			return succeeded, err
		}
	}
	return succeeded, nil
}

// Each calls f with 0 … n-1, at most 16 at a time, and returns all errors joined.
func Each(n int, f func(i int) error) error {
	var errs []error
	for start := 0; start < n; start += 16 {
		_, err := concurrently(start, min(16, n-start), f)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func concurrently(start, n int, f func(int) error) (failed int, err error) {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = f(start + i) })
	}
	wg.Wait()
	for _, e := range errs {
		if e != nil {
			failed++
		}
	}
	return failed, errors.Join(errs...)
}
