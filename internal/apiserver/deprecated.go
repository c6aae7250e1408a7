package apiserver

import (
	"context"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/endpoints/deprecation"
	"k8s.io/apiserver/pkg/warning"
)

// lifecycle is what is known about the end of a kind.
type lifecycle struct {
	warning string // "" while it is not deprecated
	removed string // release, such as "1.40"; "" when that is open
}

// warnDeprecated tells the client when a kind is on its way out.
func (s *Server) warnDeprecated(ctx context.Context, o operation) {
	l := s.lifecycleOf(o)
	if l.warning == "" {
		return
	}
	warning.AddWarning(ctx, "", l.warning)
	if o.audit != nil {
		audit.AddAuditAnnotation(ctx, "k8s.io/deprecated", "true")
		if l.removed != "" {
			audit.AddAuditAnnotation(ctx, "k8s.io/removed-release", l.removed)
		}
	}
	s.metrics.deprecated.WithLabelValues(o.info.APIGroup, o.info.APIVersion, o.info.Resource, o.info.Subresource, l.removed).Set(1)
}

func (s *Server) lifecycleOf(o operation) lifecycle {
	if o.resource.Custom != nil {
		return lifecycle{warning: o.resource.Custom.Warning}
	}
	kind := o.resource.GVK(o.info.APIVersion)
	if l, ok := s.lifecycles.Load(kind); ok {
		return l.(lifecycle)
	}
	l := s.findLifecycle(o, kind)
	s.lifecycles.Store(kind, l)
	return l
}

func (s *Server) findLifecycle(o operation, kind schema.GroupVersionKind) lifecycle {
	major, minor, err := deprecation.MajorMinor(s.cfg.Version)
	if err != nil {
		return lifecycle{}
	}
	obj, err := o.resource.Codec().New(kind.GroupVersion())
	if err != nil || !deprecation.IsDeprecated(obj, major, minor) {
		return lifecycle{}
	}
	obj.GetObjectKind().SetGroupVersionKind(kind)
	return lifecycle{deprecation.WarningMessage(obj), deprecation.RemovedRelease(obj)}
}
