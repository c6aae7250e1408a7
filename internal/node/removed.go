package node

import (
	"context"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
)

// ConfigMaps in kube-system that say, by the names of servers that are no members any more, since when. A server that joins, by its
// key or with a token, is on neither.
const (
	// removedServers are those that an administrator removed: they must not come back by themselves.
	removedServers = "barque-removed-servers"
	// lostServers are those that were silent for too long: they may.
	lostServers = "barque-lost-servers"
)

// ban notes that a server must not come back by itself.
func (s *Server) ban(ctx context.Context, name string) error {
	if err := s.enlist(ctx, removedServers, name); err != nil {
		return err
	}
	return s.strike(ctx, lostServers, name)
}

// allow takes a ban back. Whether the server is a member may not be certain: it may be banned again by its name in any case.
func (s *Server) allow(ctx context.Context, name string) error {
	if err := s.noteLost(ctx, name); err != nil {
		return err
	}
	return s.strike(ctx, removedServers, name)
}

// noteLost notes that a server is about to be removed and may come back by itself.
func (s *Server) noteLost(ctx context.Context, name string) error {
	return s.enlist(ctx, lostServers, name)
}

// lost tells whether a server that is no member may come back by itself.
func (s *Server) lost(ctx context.Context, name string) (bool, error) {
	if err := s.catchUp(ctx); err != nil {
		return false, fmt.Errorf("read which servers were lost: %w", err)
	}
	_, lost, err := s.listed(ctx, lostServers, name)
	return lost, err
}

// welcome forgets that a server was removed, or lost.
func (s *Server) welcome(ctx context.Context, name string) error {
	if err := s.strike(ctx, removedServers, name); err != nil {
		return err
	}
	return s.strike(ctx, lostServers, name)
}

// listed tells whether a server is on a list, and since when.
func (s *Server) listed(ctx context.Context, which, name string) (when string, ok bool, err error) {
	var list corev1.ConfigMap
	err = s.client.Get(ctx, ctrlclient.ObjectKey{Namespace: metav1.NamespaceSystem, Name: which}, &list)
	if ctrlclient.IgnoreNotFound(err) != nil {
		return "", false, fmt.Errorf("read the ConfigMap %s: %w", which, err)
	}
	when, ok = list.Data[name]
	return when, ok, nil
}

func (s *Server) enlist(ctx context.Context, which, name string) error {
	when := time.Now().UTC().Format(time.RFC3339)
	return s.changeList(ctx, which, func(list map[string]string) { list[name] = when })
}

func (s *Server) strike(ctx context.Context, which, name string) error {
	return s.changeList(ctx, which, func(list map[string]string) { delete(list, name) })
}

// changeList changes a list of servers, which is made if need be.
func (s *Server) changeList(ctx context.Context, which string, change func(map[string]string)) error {
	c := s.client.WithFieldManager(serverManager)
	for {
		list := corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: which}}
		err := c.Get(ctx, ctrlclient.ObjectKeyFromObject(&list), &list)
		missing := apierrors.IsNotFound(err)
		if err != nil && !missing {
			return fmt.Errorf("read the ConfigMap %s: %w", which, err)
		}
		before := maps.Clone(list.Data)
		if list.Data == nil {
			list.Data = map[string]string{}
		}
		change(list.Data)
		switch {
		case maps.Equal(before, list.Data):
			return nil
		case missing:
			err = c.Create(ctx, &list)
		default:
			err = c.Update(ctx, &list)
		}
		if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("change the ConfigMap %s: %w", which, err)
		}
		return nil
	}
}
