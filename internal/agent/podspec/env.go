package podspec

import (
	"fmt"
	"net"
	"sort"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Expand replaces $(NAME) by the variable's value. A reference to a variable that is not set stays
// as it is, and $$ stands for one $.
func Expand(s string, vars map[string]string) string {
	return expand(s, vars, func(string) {})
}

// ExpandAll is Expand, except that a reference to a variable that is not set is an error.
func ExpandAll(s string, vars map[string]string) (string, error) {
	var missing []string
	out := expand(s, vars, func(name string) { missing = append(missing, name) })
	if len(missing) > 0 {
		return "", fmt.Errorf("missing value for %s", strings.Join(missing, ", "))
	}
	return out, nil
}

func expand(s string, vars map[string]string, missing func(name string)) string {
	if !strings.Contains(s, "$") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			b.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(s[i+2:], ')')
			if end < 0 {
				b.WriteString(s[i:])
				return b.String()
			}
			name := s[i+2 : i+2+end]
			if v, ok := vars[name]; ok {
				b.WriteString(v)
			} else {
				missing(name)
				b.WriteString(s[i : i+3+end])
			}
			i += 2 + end
		default:
			b.WriteByte('$')
		}
	}
	return b.String()
}

// Var is one environment variable.
type Var struct{ Name, Value string }

// Environment returns a container's variables: those of its definition, in order, then those of
// services, which lose against the definition.
func Environment(pod *corev1.Pod, c *corev1.Container, facts Facts, services []*corev1.Service, sources Sources) ([]Var, error) {
	serviceVars := ServiceVars(pod, services)
	vars := map[string]string{}
	var out []Var
	set := func(name, value string) {
		if _, again := vars[name]; !again {
			out = append(out, Var{Name: name})
		}
		vars[name] = value
	}
	for i := range c.EnvFrom {
		if err := envFrom(pod, &c.EnvFrom[i], sources, set); err != nil {
			return nil, err
		}
	}
	for i := range c.Env {
		e := &c.Env[i]
		value := e.Value
		switch {
		case e.ValueFrom != nil:
			v, ok, err := valueFrom(pod, c, e.ValueFrom, facts, sources)
			if err != nil {
				return nil, err
			}
			if !ok {
				continue
			}
			value = v
		case strings.Contains(value, "$"):
			known := make(map[string]string, len(serviceVars)+len(vars))
			for _, v := range serviceVars {
				known[v.Name] = v.Value
			}
			for k, v := range vars {
				known[k] = v
			}
			value = Expand(value, known)
		}
		set(e.Name, value)
	}
	for i := range out {
		out[i].Value = vars[out[i].Name]
	}
	for _, v := range serviceVars {
		if _, own := vars[v.Name]; !own {
			out = append(out, v)
		}
	}
	return out, nil
}

func envFrom(pod *corev1.Pod, from *corev1.EnvFromSource, sources Sources, set func(name, value string)) error {
	optional := func(b *bool) bool { return b != nil && *b }
	data := map[string]string{}
	switch {
	case from.ConfigMapRef != nil:
		cm, err := sources.ConfigMap(pod.Namespace, from.ConfigMapRef.Name)
		if apierrors.IsNotFound(err) && optional(from.ConfigMapRef.Optional) {
			return nil
		} else if err != nil {
			return err
		}
		data = cm.Data
	case from.SecretRef != nil:
		secret, err := sources.Secret(pod.Namespace, from.SecretRef.Name)
		if apierrors.IsNotFound(err) && optional(from.SecretRef.Optional) {
			return nil
		} else if err != nil {
			return err
		}
		for k, v := range secret.Data {
			data[k] = string(v)
		}
	}
	keys := make([]string, 0, len(data))
	for k := range data {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		name := from.Prefix + k
		if name == "" || strings.ContainsAny(name, "=\x00") {
			continue
		}
		set(name, data[k])
	}
	return nil
}

func valueFrom(pod *corev1.Pod, c *corev1.Container, from *corev1.EnvVarSource, facts Facts, sources Sources) (value string, ok bool, err error) {
	switch {
	case from.FieldRef != nil:
		value, err = Field(pod, from.FieldRef.FieldPath, facts)
		return value, true, err
	case from.ResourceFieldRef != nil:
		of := c
		if name := from.ResourceFieldRef.ContainerName; name != "" {
			if of = Container(pod, name); of == nil {
				return "", false, fmt.Errorf("container %q not found", name)
			}
		}
		value, err = ResourceField(of, from.ResourceFieldRef, facts.Allocatable)
		return value, true, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		optional := ref.Optional != nil && *ref.Optional
		cm, err := sources.ConfigMap(pod.Namespace, ref.Name)
		if err != nil {
			return "", false, unlessOptional(err, optional)
		}
		if v, found := cm.Data[ref.Key]; found {
			return v, true, nil
		}
		return "", false, missingKey(ref.Key, "ConfigMap", pod.Namespace, ref.Name, optional)
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		optional := ref.Optional != nil && *ref.Optional
		secret, err := sources.Secret(pod.Namespace, ref.Name)
		if err != nil {
			return "", false, unlessOptional(err, optional)
		}
		if v, found := secret.Data[ref.Key]; found {
			return string(v), true, nil
		}
		return "", false, missingKey(ref.Key, "Secret", pod.Namespace, ref.Name, optional)
	default:
		return "", false, fmt.Errorf("this node does not support the environment variable's source")
	}
}

func unlessOptional(err error, optional bool) error {
	if optional && apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func missingKey(key, kind, namespace, name string, optional bool) error {
	if optional {
		return nil
	}
	return fmt.Errorf("couldn't find key %s in %s %s/%s", key, kind, namespace, name)
}

// ServiceVars returns the variables that tell of services, as Docker links once did: those of the
// API server always, those of the pod's namespace unless the pod does not want them. Services
// without a cluster address have none.
func ServiceVars(pod *corev1.Pod, services []*corev1.Service) []Var {
	links := pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks
	byName := map[string]*corev1.Service{}
	for _, s := range services {
		if s.Spec.ClusterIP == "" || s.Spec.ClusterIP == corev1.ClusterIPNone || len(s.Spec.Ports) == 0 {
			continue
		}
		master := s.Namespace == corev1.NamespaceDefault && s.Name == "kubernetes"
		switch {
		case s.Namespace == pod.Namespace && (links || master):
			byName[s.Name] = s
		case master && byName[s.Name] == nil:
			byName[s.Name] = s
		}
	}
	names := make([]string, 0, len(byName))
	for name := range byName {
		names = append(names, name)
	}
	sort.Strings(names)
	var out []Var
	for _, name := range names {
		out = append(out, varsOf(byName[name])...)
	}
	return out
}

func varsOf(s *corev1.Service) []Var {
	prefix := envName(s.Name)
	ip, first := s.Spec.ClusterIP, s.Spec.Ports[0]
	out := []Var{
		{prefix + "_SERVICE_HOST", ip},
		{prefix + "_SERVICE_PORT", strconv.Itoa(int(first.Port))},
	}
	for _, p := range s.Spec.Ports {
		if p.Name != "" {
			out = append(out, Var{prefix + "_SERVICE_PORT_" + envName(p.Name), strconv.Itoa(int(p.Port))})
		}
	}
	for i, p := range s.Spec.Ports {
		protocol := string(p.Protocol)
		if protocol == "" {
			protocol = string(corev1.ProtocolTCP)
		}
		port := strconv.Itoa(int(p.Port))
		url := strings.ToLower(protocol) + "://" + net.JoinHostPort(ip, port)
		if i == 0 {
			out = append(out, Var{prefix + "_PORT", url})
		}
		each := prefix + "_PORT_" + port + "_" + strings.ToUpper(protocol)
		out = append(out,
			Var{each, url},
			Var{each + "_PROTO", strings.ToLower(protocol)},
			Var{each + "_PORT", port},
			Var{each + "_ADDR", ip})
	}
	return out
}

func envName(s string) string { return strings.ToUpper(strings.ReplaceAll(s, "-", "_")) }
