package compare

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Difference is one place where two answers are not the same.
type Difference struct {
	At          string
	Stock, Ours any // absent where there is nothing
}

// absent stands for what is not there.
const absent = "(nothing)"

// Diff lists the differences of two normal answers, ordered by place.
func Diff(stock, ours Normal) []Difference {
	var found []Difference
	diff("", map[string]any(stock), map[string]any(ours), &found)
	return found
}

func diff(at string, stock, ours any, found *[]Difference) {
	if s, ok := stock.(map[string]any); ok {
		if o, ok := ours.(map[string]any); ok {
			diffMaps(at, s, o, found)
			return
		}
	}
	if s, ok := stock.([]any); ok {
		if o, ok := ours.([]any); ok {
			diffLists(at, s, o, found)
			return
		}
	}
	if !reflect.DeepEqual(stock, ours) && Text(stock) != Text(ours) {
		*found = append(*found, Difference{at, stock, ours})
	}
}

func diffMaps(at string, stock, ours map[string]any, found *[]Difference) {
	keys := slices.Collect(maps.Keys(stock))
	keys = slices.AppendSeq(keys, maps.Keys(ours))
	slices.Sort(keys)
	for _, key := range slices.Compact(keys) {
		s, inStock := stock[key]
		o, inOurs := ours[key]
		place := strings.TrimPrefix(at+"."+key, ".")
		switch {
		case !inStock:
			*found = append(*found, Difference{place, absent, o})
		case !inOurs:
			*found = append(*found, Difference{place, s, absent})
		default:
			diff(place, s, o, found)
		}
	}
}

// diffLists pairs items that have names by these, and others by their places.
func diffLists(at string, stock, ours []any, found *[]Difference) {
	s, sNames := byName(stock)
	o, oNames := byName(ours)
	if s == nil || o == nil {
		if len(stock) != len(ours) {
			*found = append(*found, Difference{at, stock, ours})
			return
		}
		for i := range stock {
			diff(fmt.Sprintf("%s[%d]", at, i), stock[i], ours[i], found)
		}
		return
	}
	diffMaps(at+"[]", s, o, found)
	both := func(name string) bool { return s[name] == nil || o[name] == nil }
	sNames, oNames = slices.DeleteFunc(sNames, both), slices.DeleteFunc(oNames, both)
	if !slices.Equal(sNames, oNames) {
		*found = append(*found, Difference{at + "[order]", strings.Join(sNames, " "), strings.Join(oNames, " ")})
	}
}

// byName is a list as a map, if each of its items has a name of its own.
func byName(list []any) (map[string]any, []string) {
	named := map[string]any{}
	var names []string
	for _, item := range list {
		object, _ := item.(map[string]any)
		meta, _ := object["metadata"].(map[string]any)
		if row, ok := object["object"].(map[string]any); ok && meta == nil {
			meta, _ = row["metadata"].(map[string]any)
		}
		name := ""
		for _, part := range []any{meta["namespace"], meta["name"], object["name"], object["resource"], object["version"]} {
			if text, ok := part.(string); ok {
				name = strings.TrimPrefix(name+"/"+text, "/")
			}
		}
		if name == "" || named[name] != nil {
			return nil, nil
		}
		named[name] = item
		names = append(names, name)
	}
	return named, names
}

// Text is a value in short.
func Text(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(data)
}

// Rivals brings answers to racing requests into an order that is the same for the same outcome.
func Rivals(answers []Normal) []Normal {
	sorted := slices.Clone(answers)
	slices.SortFunc(sorted, func(a, b Normal) int {
		return strings.Compare(Text(a["status"])+Text(map[string]any(a)), Text(b["status"])+Text(map[string]any(b)))
	})
	return sorted
}
