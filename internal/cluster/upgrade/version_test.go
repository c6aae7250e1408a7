package upgrade

import (
	"errors"
	"slices"
	"testing"
)

func TestAllowed(t *testing.T) {
	base := Version{Barque: "v1.4.2", Kubernetes: "v1.37.1", Etcd: "3.6.5"}
	with := func(change func(*Version)) Version {
		v := base
		change(&v)
		return v
	}
	for name, c := range map[string]struct {
		from, to Version
		refused  bool
	}{
		"the same":                          {base, base, false},
		"a patch up":                        {base, with(func(v *Version) { v.Kubernetes = "v1.37.9" }), false},
		"a patch back":                      {base, with(func(v *Version) { v.Kubernetes = "v1.37.0" }), false},
		"a minor version of Kubernetes up":  {base, with(func(v *Version) { v.Kubernetes = "v1.38.0" }), false},
		"two minor versions up":             {base, with(func(v *Version) { v.Kubernetes = "v1.39.0" }), true},
		"a minor version back":              {base, with(func(v *Version) { v.Kubernetes = "v1.36.4" }), true},
		"a major version up":                {base, with(func(v *Version) { v.Kubernetes = "v2.0.0" }), true},
		"etcd up":                           {base, with(func(v *Version) { v.Etcd = "3.7.0" }), false},
		"etcd back":                         {base, with(func(v *Version) { v.Etcd = "3.5.21" }), true},
		"Barque back":                       {base, with(func(v *Version) { v.Barque = "v1.3.0" }), true},
		"Barque two up":                     {base, with(func(v *Version) { v.Barque = "v1.6.0" }), true},
		"a development's build":             {base, with(func(v *Version) { v.Barque = "59f53a7-dirty" }), false},
		"what does not tell its Kubernetes": {base, with(func(v *Version) { v.Kubernetes = "devel" }), true},
	} {
		if err := Allowed(c.from, c.to); (err != nil) != c.refused {
			t.Errorf("%s: %v, refused should be %v", name, err, c.refused)
		}
	}
	if err := Allowed(base, with(func(v *Version) { v.Etcd = "3.5.0" })); !errors.Is(err, ErrSkew) {
		t.Errorf("want ErrSkew, got %v", err)
	}
}

func TestOrder(t *testing.T) {
	got := Order([]Machine{
		{Name: "agent-2"}, {Name: "server-1", Server: true, Leads: true}, {Name: "agent-1"}, {Name: "server-3", Server: true}, {Name: "server-2", Server: true},
	})
	var names []string
	for _, m := range got {
		names = append(names, m.Name)
	}
	if want := []string{"server-2", "server-3", "server-1", "agent-1", "agent-2"}; !slices.Equal(names, want) {
		t.Errorf("order %v, want %v", names, want)
	}
}
