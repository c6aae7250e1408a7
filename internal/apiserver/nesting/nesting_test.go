package nesting

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// within is a document of so many fields in one with a long name.
func within(name, fields int) string {
	var b strings.Builder
	b.WriteString(`{"` + strings.Repeat("n", name) + `":{`)
	for i := range fields {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `"f%d":1`, i)
	}
	b.WriteString("}}")
	return b.String()
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		about, document string
		refused         string
	}{
		{"small", `{"a":{"b":[1,{"c":2}]}}`, ""},
		{"one long value", `{"a":"` + strings.Repeat("v", 2<<20) + `"}`, ""},
		{"one long value with quotes", `{"a":"` + strings.Repeat(`\"{`, 1<<20) + `"}`, ""},
		{"many fields", within(10, 200_000), ""},
		{"a long name", within(MaxPath, 1), "the path of a field"},
		{"a long name of nothing", within(MaxPath-1, 0), ""},
		{"many fields in a long name", within(40<<10, 2000), "the paths of all fields"},
		{"some fields in a long name", within(40<<10, 1000), ""},
		{"many deep fields", `{"a":` + strings.Repeat(`[{"b":`, 2000) + within(1, 4000) + strings.Repeat("}]", 2000) + "}", "the paths of all fields"},
		{"a long name with quotes", `{"` + strings.Repeat(`\"`, MaxPath/2) + `":1}`, "the path of a field"},
		{"deeper than anybody decodes", strings.Repeat(`{"aaaa":`, 200_000), ""},
		{"lists deeper than anybody decodes", strings.Repeat(`[`, 200_000), ""},
		{"closed more often than opened", strings.Repeat(`]}`, 50_000) + `,{"` + strings.Repeat("n", MaxPath) + `":1}`, "the path of a field"},
		{"a string without an end", `{"` + strings.Repeat(`n\"`, 50_000), "the path of a field"},
		{"a string alone", `"` + strings.Repeat("n", 2*MaxPath) + `"`, ""},
		{"no JSON", strings.Repeat("x,", 50_000), ""},
	} {
		for name, check := range map[string]func([]byte) error{"JSON": CheckJSON, "YAML": CheckYAML} {
			err := check([]byte(tt.document))
			if name == "YAML" && !json.Valid([]byte(tt.document)) {
				continue // of which only the scan is sure
			}
			if tt.refused == "" && err != nil || tt.refused != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.refused)) {
				t.Errorf("%s, as %s: %v", tt.about, name, err)
			}
		}
	}
}

// What YAML repeats by reference counts as often as it is referred to.
func TestCheckReferences(t *testing.T) {
	var b strings.Builder
	b.WriteString("some: &some {")
	for i := range 60 {
		fmt.Fprintf(&b, "f%d: 1, ", i)
	}
	b.WriteString("}\n? " + strings.Repeat("n", 5<<10) + "\n:\n")
	for i := range 300 {
		fmt.Fprintf(&b, " g%d: *some\n", i)
	}
	if b.Len() > 2*small {
		t.Fatalf("it has %d bytes", b.Len())
	}
	if err := CheckYAML([]byte(b.String())); err == nil {
		t.Error("it is taken")
	}
	if err := CheckYAML([]byte("a: &a {b: 1}\nc: *a\n")); err != nil {
		t.Error(err)
	}
}

// TestScan: the scan finds the paths that a decoder finds.
func TestScan(t *testing.T) {
	var value func(depth int) *rapid.Generator[any]
	value = func(depth int) *rapid.Generator[any] {
		scalar := rapid.OneOf(rapid.Just[any](nil), rapid.Map(rapid.StringMatching(`[ -~]{0,5}`), func(s string) any { return s }), rapid.Map(rapid.Int(), func(n int) any { return n }))
		if depth == 0 {
			return scalar
		}
		return rapid.OneOf(scalar,
			rapid.Map(rapid.SliceOfN(value(depth-1), 0, 3), func(l []any) any { return l }),
			rapid.Map(rapid.MapOfN(rapid.StringMatching(`[ -~]{0,5}`), value(depth-1), 0, 3), func(o map[string]any) any { return o }))
	}
	rapid.Check(t, func(t *rapid.T) {
		v := value(4).Draw(t, "value")
		document, err := json.MarshalIndent(v, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		s := scan{document: document}
		if err := s.run(); err != nil {
			t.Fatal(err)
		}
		if want := paths(t, v, 0); s.paths != want || len(s.in) != 0 {
			t.Errorf("%s: %d bytes, want %d", document, s.paths, want)
		}
	})
}

// paths is the length of all paths in a value, which has one itself.
func paths(t *rapid.T, v any, path int) int {
	sum := 0
	switch v := v.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			quoted, err := json.Marshal(key)
			if err != nil {
				t.Fatal(err)
			}
			at := path + 1 + len(quoted) - 2
			sum += at + paths(t, v[key], at)
		}
	case []any:
		for _, item := range v {
			sum += paths(t, item, path+index)
		}
	}
	return sum
}
