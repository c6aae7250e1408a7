package job

import (
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// indexes is a set of completion indexes as disjoint intervals in rising order, none touching
// the next. Its string form is that of status.completedIndexes: "0,2,3,5-9".
type indexes []interval

type interval struct{ first, last int }

// parseIndexes reads the string form, leaving out what is malformed and what is not below
// completions.
func parseIndexes(s string, completions int) indexes {
	var set indexes
	for _, part := range strings.Split(s, ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, err1 := strconv.Atoi(from)
		last, err2 := strconv.Atoi(to)
		if err1 != nil || err2 != nil || first >= completions || last < first {
			continue
		}
		set = append(set, interval{first, min(last, completions-1)})
	}
	return set.union(nil)
}

func (s indexes) String() string {
	var b strings.Builder
	for _, iv := range s {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(iv.first))
		switch iv.last - iv.first {
		case 0:
		case 1:
			b.WriteByte(',')
			b.WriteString(strconv.Itoa(iv.last))
		default:
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(iv.last))
		}
	}
	return b.String()
}

// union returns a new set of the elements of both.
func (s indexes) union(other indexes) indexes {
	all := slices.Concat(s, other)
	slices.SortFunc(all, func(a, b interval) int { return a.first - b.first })
	var merged indexes
	for _, iv := range all {
		if n := len(merged); n > 0 && iv.first <= merged[n-1].last+1 {
			merged[n-1].last = max(merged[n-1].last, iv.last)
		} else {
			merged = append(merged, iv)
		}
	}
	return merged
}

// with returns a new set with some more elements.
func (s indexes) with(more ...int) indexes {
	other := make(indexes, len(more))
	for i, n := range more {
		other[i] = interval{n, n}
	}
	return s.union(other)
}

func (s indexes) total() int {
	n := 0
	for _, iv := range s {
		n += iv.last - iv.first + 1
	}
	return n
}

func (s indexes) has(n int) bool {
	i, found := slices.BinarySearchFunc(s, n, func(iv interval, n int) int {
		switch {
		case iv.last < n:
			return -1
		case iv.first > n:
			return 1
		}
		return 0
	})
	return found && i < len(s)
}

// overlap counts the elements in both.
func (s indexes) overlap(other indexes) int {
	n := 0
	for i, j := 0, 0; i < len(s) && j < len(other); {
		n += max(0, min(s[i].last, other[j].last)-max(s[i].first, other[j].first)+1)
		if s[i].last < other[j].last {
			i++
		} else {
			j++
		}
	}
	return n
}

// missing returns the lowest n numbers below completions that are not in the set.
func (s indexes) missing(n, completions int) []int {
	var result []int
	next := 0
	for _, iv := range append(slices.Clone(s), interval{completions, completions}) {
		for ; next < iv.first && next < completions && len(result) < n; next++ {
			result = append(result, next)
		}
		next = max(next, iv.last+1)
	}
	return result
}

// noIndex marks a pod without a completion index, or with one that cannot be.
const noIndex = -1

func indexOf(pod *corev1.Pod) int {
	n, err := strconv.Atoi(pod.Annotations[batchv1.JobCompletionIndexAnnotation])
	if err != nil || n < 0 {
		return noIndex
	}
	return n
}

// annotated reads a count from an annotation; 0 if it is not there or makes no sense.
func annotated(pod *corev1.Pod, annotation string) int32 {
	n, err := strconv.ParseInt(pod.Annotations[annotation], 10, 32)
	if err != nil || n < 0 {
		return 0
	}
	return int32(n)
}
