package report

import (
	"slices"
	"testing"
)

func TestChoose(t *testing.T) {
	names := []string{"a", "b", "c"}
	for only, want := range map[string][]string{"": names, "c,a": {"a", "c"}, "b": {"b"}} {
		if got, err := Choose(names, only); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q chooses %v, want %v; error %v", only, got, want, err)
		}
	}
	if got, err := Choose(names, "a,typo"); err == nil {
		t.Errorf("a name that there is not chooses %v", got)
	}
}
