package node

import (
	"context"
	"fmt"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/api"
	"barque.dev/internal/auth"
	"barque.dev/internal/auth/rbac"
	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/cluster/detect"
	"barque.dev/internal/cluster/vip"
	"barque.dev/internal/controllers"
	"barque.dev/internal/controllers/kit"
	"barque.dev/internal/store"
)

// lateReader reads through the server's client, which is made after what needs the reader.
type lateReader struct{ server *Server }

// Get looks twice for what is missing: another server may just have created it.
func (r lateReader) Get(ctx context.Context, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
	err := r.server.client.Get(ctx, key, obj, opts...)
	if !apierrors.IsNotFound(err) {
		return err
	}
	if _, err := r.server.store.ReadIndex(ctx); err != nil {
		return fmt.Errorf("look for %s: %w", key, err)
	}
	return r.server.client.Get(ctx, key, obj, opts...)
}

func (r lateReader) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	return r.server.client.List(ctx, list, opts...)
}

// lateImage is lateReader for what wants the image itself.
type lateImage struct{ server *Server }

func (i lateImage) Table(gr schema.GroupResource) *store.Table {
	if i.server.registry == nil {
		return nil
	}
	return i.server.registry.Table(gr)
}

func (i lateImage) Find(ctx context.Context, gr schema.GroupResource, namespace, name string) (runtime.Object, error) {
	return i.server.registry.Find(ctx, gr, namespace, name)
}

func (i lateImage) ForKind(gk schema.GroupKind) (*api.Resource, *store.Table, bool) {
	return i.server.registry.ForKind(gk)
}

func (i lateImage) TypeConverter(gvk schema.GroupVersionKind) managedfields.TypeConverter {
	return i.server.registry.TypeConverter(gvk)
}

// indexes are those that decisions about access look things up by.
func indexes() map[schema.GroupResource]map[string]store.IndexFunc {
	all := map[schema.GroupResource]map[string]store.IndexFunc{}
	for _, ix := range auth.Indexes() {
		if all[ix.Resource] == nil {
			all[ix.Resource] = map[string]store.IndexFunc{}
		}
		all[ix.Resource][ix.Name] = ix.Values
	}
	return all
}

// roleAggregation is the controller of cluster roles that are made of others.
func (s *Server) roleAggregation(c barqueclient.Client) controllers.Controller {
	aggregator := &rbac.Aggregator{Client: c}
	return controllers.Controller{
		Name:    "clusterrole-aggregation",
		Account: "clusterrole-aggregation-controller",
		Watches: []controllers.Watch{{Kind: &rbacv1.ClusterRole{}, Requests: func(barqueclient.Event) []reconcile.Request {
			var roles rbacv1.ClusterRoleList
			if err := s.client.List(context.Background(), &roles); kit.Readable(err) != nil {
				return nil
			}
			return rbac.Aggregated(roles.Items)
		}}},
		Reconcile: aggregator.Reconcile,
		Workers:   1,
	}
}

// Without this the virtual IP's holder could be taken for gone before it falls silent.
const _ = uint(detect.Silence - vip.Good)

// vipPoll is how often a server that leads checks its store's health; of leadership it is told.
const vipPoll = 100 * time.Millisecond

// runVIP holds the virtual IP while this server leads and its store is well.
func (s *Server) runVIP(ctx context.Context, ready func()) error {
	ip, err := vip.New(vip.Config{Address: s.cfg.VIP, Confirm: s.leadership.Confirm, Log: s.cfg.Log})
	if err != nil {
		return err
	}
	return ip.Run(ctx, ready, func(ctx context.Context, hold func(context.Context) error) error {
		for s.awaitFitness(ctx, true) {
			term, end := context.WithCancel(ctx)
			go func() {
				defer end()
				s.awaitFitness(term, false)
			}()
			if err := hold(term); err != nil && term.Err() == nil {
				end()
				return err
			}
			end()
		}
		return nil
	})
}

// awaitFitness waits until this server should answer at the virtual IP, or should not; false if
// ctx ended first.
func (s *Server) awaitFitness(ctx context.Context, fit bool) bool {
	tick := time.NewTicker(vipPoll)
	defer tick.Stop()
	for ctx.Err() == nil {
		changed := s.leadership.Changed()
		if s.fit() == fit {
			return true
		}
		poll := tick.C
		if !s.leadership.Leading() {
			poll = nil // its health makes no difference
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-poll:
		}
	}
	return false
}

// fit tells whether this server should answer at the virtual IP.
func (s *Server) fit() bool { return s.leadership.Leading() && s.store.Healthy() == nil }
