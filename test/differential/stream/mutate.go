package stream

import (
	"maps"
	"math"
	"slices"
	"strings"
)

// words are strings that some field or other takes for special.
func words() []string {
	return []string{
		"", "a", "A_b", "Always", "Never", "IfNotPresent", "None", "Default", "TCP", "SCTP", "http", "Delete", "Retain", "Foreground",
		strings.Repeat("x", 64), strings.Repeat("y", 254), strings.Repeat("z", 2000), "ünï☸", "a b", " a", "-a", "a-", "1", "0", "-1", "10", "007",
		"/", "../x", "/a/../b", "*", "a/b", "a.b.c", "example.com/x", "a/b/c", "255.255.255.256", "010.0.0.1", "::1", "fe80::1%eth0", "10.0.0.0/33", "10.0.0.1/24",
		"1Gi", "-1Gi", "1e400", "0.5", "100%", "101%", "5m", "1h", "true", "null", "\u0000", "\ufffd", "line\nbreak", "2026-01-02T03:04:05Z", "2026-01-02T03:04:05.678901Z",
		"yesterday", "{{", "$(x)", "object.x > 1", "default", "kube-system", "default-token", "v1", "Pod", "pods",
	}
}

// numbers are those at the bounds of something.
func numbers() []any {
	return []any{0, 1, -1, 2, 7, 100, 101, 65535, 65536, math.MaxInt32, int64(math.MaxInt32) + 1, int64(math.MaxInt64), uint64(math.MaxInt64) + 1, 1.5, 0.0, 1e30}
}

// site is a place in an object.
type site struct {
	set    func(value any)
	remove func()
	value  any
	schema *Schema
	path   []string
}

// sites lists every place of a value, its own excepted.
func (d *Document) sites(value any, s *Schema, path []string) []site {
	s = d.resolve(s)
	var found []site
	switch v := value.(type) {
	case map[string]any:
		of := s.values()
		for _, key := range slices.Sorted(maps.Keys(v)) {
			child := s.Properties[key]
			if child == nil {
				child = of
			}
			at := append(path[:len(path):len(path)], key)
			found = append(found, site{func(x any) { v[key] = x }, func() { delete(v, key) }, v[key], d.resolve(child), at})
			found = append(found, d.sites(v[key], child, at)...)
		}
	case []any:
		for i := range v {
			at := append(path[:len(path):len(path)], "0")
			found = append(found, site{func(x any) { v[i] = x }, func() { v[i] = nil }, v[i], d.resolve(s.Items), at})
			found = append(found, d.sites(v[i], s.Items, at)...)
		}
	}
	return found
}

// mutate changes one thing about an object, which is the caller's. metadata.name, namespace and the stream's label are
// left alone, so that objects stay where they belong.
func (m *maker) mutate(k *kind, object map[string]any) {
	all := k.document.sites(object, k.schema, nil)
	all = slices.DeleteFunc(all, func(s site) bool {
		path := strings.Join(s.path, ".")
		return path == "metadata" || path == "metadata.name" || path == "metadata.namespace" || strings.HasPrefix(path, "metadata.labels") ||
			strings.HasPrefix(path, "metadata.") && !m.chance(20) || (path == "kind" || path == "apiVersion") && !m.chance(20)
	})
	if len(all) == 0 {
		object["spec"] = m.value(k.document, k.schema.Properties["spec"], 3)
		return
	}
	s := all[m.random.IntN(len(all))]
	switch m.random.IntN(8) {
	case 0:
		s.remove()
	case 1:
		s.set(pick(m, any(nil), any("text"), any(5), any(true), any([]any{}), any(map[string]any{}), any([]any{"x"}), any(map[string]any{"x": "y"})))
	case 2, 3:
		s.set(m.value(k.document, s.schema, 3))
	case 4:
		if !m.unknown(s.value) {
			s.set(m.scalar(s.schema))
		}
	case 5:
		if list, ok := s.value.([]any); ok && len(list) > 0 {
			s.set(append(slices.Clone(list), list[m.random.IntN(len(list))]))
			return
		}
		s.set(m.scalar(s.schema))
	default:
		m.extend(k.document, s)
	}
}

// unknown adds a field that no schema has.
func (m *maker) unknown(value any) bool {
	object, ok := value.(map[string]any)
	if ok {
		object[pick(m, "unheardOf", "Spec", "kind2", "x-y")] = pick(m, any("x"), any(1), any(nil), any(map[string]any{"a": 1}))
	}
	return ok
}

// extend gives an object a field that it does not have, or a list one item more.
func (m *maker) extend(d *Document, s site) {
	switch v := s.value.(type) {
	case map[string]any:
		if missing := slices.DeleteFunc(slices.Sorted(maps.Keys(s.schema.Properties)), func(key string) bool { return v[key] != nil }); len(missing) > 0 {
			key := missing[m.random.IntN(len(missing))]
			v[key] = m.value(d, s.schema.Properties[key], 3)
		} else if of := s.schema.values(); of != nil {
			v[m.word()] = m.value(d, of, 2)
		} else {
			m.unknown(v)
		}
	case []any:
		s.set(append(slices.Clone(v), m.value(d, s.schema.Items, 3)))
	default:
		s.set(m.scalar(s.schema))
	}
}

func (m *maker) word() string {
	all := words()
	return all[m.random.IntN(len(all))]
}

// value makes one of a schema, to a depth.
func (m *maker) value(d *Document, s *Schema, depth int) any {
	s = d.resolve(s)
	switch {
	case s.Type == "array":
		list := []any{}
		for range m.random.IntN(3) {
			if depth > 0 {
				list = append(list, m.value(d, s.Items, depth-1))
			}
		}
		return list
	case len(s.Properties) > 0:
		object := map[string]any{}
		if depth <= 0 {
			return object
		}
		for _, key := range s.Required {
			if !m.chance(10) {
				object[key] = m.value(d, s.Properties[key], depth-1)
			}
		}
		keys := slices.Sorted(maps.Keys(s.Properties))
		for range m.random.IntN(4) {
			key := keys[m.random.IntN(len(keys))]
			object[key] = m.value(d, s.Properties[key], depth-1)
		}
		return object
	case s.values() != nil:
		return map[string]any{m.word(): m.value(d, s.values(), depth-1)}
	}
	return m.scalar(s)
}

// scalar makes a value without parts.
func (m *maker) scalar(s *Schema) any {
	switch s.Type {
	case "integer", "number":
		all := numbers()
		return all[m.random.IntN(len(all))]
	case "boolean":
		return m.chance(50)
	case "string":
		switch s.Format {
		case "byte":
			return pick(m, "", "AAEC/w==", "no base64!", "YQ")
		case "date-time":
			return pick(m, "2026-01-02T03:04:05Z", "2026-01-02T03:04:05.678901Z", "2026-13-02T03:04:05Z", "", "now")
		}
		return m.word()
	}
	if m.chance(50) {
		return m.word()
	}
	all := numbers()
	return all[m.random.IntN(len(all))]
}
