package kernel

import (
	"errors"
	"strings"
	"testing"
)

func TestThisKernelRunsPods(t *testing.T) {
	if err := Check(Features()); err != nil {
		t.Error(err)
	}
}

func TestCheckSaysWhatIsMissing(t *testing.T) {
	there := func() error { return nil }
	missing := func() error { return errors.New("no such device") }
	err := Check([]Feature{{"a", "do a", there}, {"b", "do b", missing}, {"c", "do c", missing}})
	if err == nil {
		t.Fatal("nothing is said to be missing")
	}
	for _, want := range []string{"this kernel lacks b (no such device): do b", "this kernel lacks c (no such device): do c"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	if strings.Contains(err.Error(), "do a") {
		t.Errorf("%q speaks of what is there", err)
	}
}
