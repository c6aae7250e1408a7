package work

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"barque.dev/internal/drill/check"
)

// Judge finds what did not hold.
func Judge(r *Record) []check.Violation {
	sights := slices.Clone(r.Sights)
	// Lists of one revision are of one moment: a Job's pods come before what it has counted.
	slices.SortStableFunc(sights, func(a, b Sight) int {
		return cmp.Or(cmp.Compare(a.Revision, b.Revision), -cmp.Compare(a.Kind, b.Kind))
	})
	var all []check.Violation
	for _, rule := range []func([]Sight) []check.Violation{surges, counts, takings} {
		all = append(all, rule(sights)...)
	}
	return append(all, ordinals(sights, r.Samples)...)
}

// surges follows how many pods the Deployment has. One violation is told for as long as it lasts.
func surges(sights []Sight) (found []check.Violation) {
	active := map[string]string{} // UID to name
	above := false
	for i, s := range sights {
		if s.Kind != Pod {
			continue
		}
		switch {
		case s.Reset:
			clear(active)
		case s.Of != Deployment:
			continue
		case s.Active && !s.Gone:
			active[s.UID] = s.Name
		default:
			delete(active, s.UID)
		}
		if i+1 < len(sights) && sights[i+1].Revision == s.Revision {
			continue // a list is one moment
		}
		if now := len(active) > replicas+surge; now != above {
			above = now
			if now {
				found = append(found, check.Violation{Rule: Surge, Key: Deployment, What: fmt.Sprintf(
					"at revision %d it has %d pods, more than %d and %d in an update: %s", s.Revision, len(active), replicas, surge, names(active))})
			}
		}
	}
	return found
}

func names(of map[string]string) string {
	var all []string
	for _, name := range of {
		all = append(all, name)
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// counts compares what Jobs have counted with the pods that had succeeded. Jobs are not judged where a watch of pods was lost.
func counts(sights []Sight) (found []check.Violation) {
	succeeded := map[string]map[string]bool{} // UIDs, by the Job's UID
	unsure, told := map[string]bool{}, map[string]bool{}
	began := false
	for _, s := range sights {
		switch {
		case s.Kind == Pod && s.Reset:
			if began {
				for job := range succeeded {
					unsure[job] = true
				}
			}
			began = true
		case s.Kind == Pod && s.Succeeded:
			if succeeded[s.Of] == nil {
				succeeded[s.Of] = map[string]bool{}
			}
			succeeded[s.Of][s.UID] = true
		case s.Kind == Job && !s.Reset:
			if succeeded[s.UID] == nil {
				succeeded[s.UID] = map[string]bool{}
			}
			if n := len(succeeded[s.UID]); s.Completions > n && !unsure[s.UID] && !told[s.UID] {
				told[s.UID] = true
				found = append(found, check.Violation{Rule: Counted, Key: s.Name, What: fmt.Sprintf(
					"at revision %d it has counted %d completions, and %d of its pods have succeeded", s.Revision, s.Completions, n)})
			}
		}
	}
	return found
}

// takings follows who has which address and port.
func takings(sights []Sight) (found []check.Violation) {
	holder := map[string]string{} // what is taken, to the UID
	holds := map[string][]string{}
	free := func(uid string) {
		for _, taken := range holds[uid] {
			if holder[taken] == uid {
				delete(holder, taken)
			}
		}
		delete(holds, uid)
	}
	for _, s := range sights {
		if s.Kind != Service {
			continue
		}
		if s.Reset {
			clear(holder)
			clear(holds)
			continue
		}
		free(s.UID)
		if s.Gone {
			continue
		}
		holds[s.UID] = s.Takes
		for _, taken := range s.Takes {
			if other, ok := holder[taken]; ok {
				found = append(found, check.Violation{Rule: Unique, Key: s.Name, What: fmt.Sprintf(
					"at revision %d it has %s, which the Service of UID %s has, too", s.Revision, taken, other)})
			}
			holder[taken] = s.UID
		}
	}
	return found
}

// ordinals finds pods of the same name that ran at once.
func ordinals(sights []Sight, samples []Sample) (found []check.Violation) {
	ordinal := map[string]string{} // UID to name
	for _, s := range sights {
		if s.Kind == Pod && s.Of == StatefulSet {
			ordinal[s.UID] = s.Name
		}
	}
	told := map[string]bool{}
	for i := 1; i < len(samples); i++ {
		running := map[string]string{} // name to UID
		for _, uid := range samples[i].Running {
			name := ordinal[uid]
			if name == "" || !slices.Contains(samples[i-1].Running, uid) {
				continue
			}
			if other := running[name]; other != "" && !told[other+uid] {
				told[other+uid] = true
				found = append(found, check.Violation{Rule: Ordinal, Key: name, What: fmt.Sprintf(
					"it runs twice from %v to %v of the round: as the pods %s and %s", samples[i-1].At, samples[i].At, other, uid)})
			}
			running[name] = uid
		}
	}
	return found
}
