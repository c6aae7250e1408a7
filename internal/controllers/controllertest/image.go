package controllertest

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	barqueclient "barque.dev/internal/client"
)

// image is the world as controllers read it, which may be late.
type image struct{ *World }

func (i image) late(obj client.Object) bool {
	i.mu.Lock()
	late := i.Late
	i.mu.Unlock()
	return late != nil && late(obj)
}

func (i image) damaged(obj client.Object) bool { return i.Damaged != nil && i.Damaged(obj) }

// Get reads an object that has come to the image.
func (i image) Get(ctx context.Context, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
	if err := i.World.Get(ctx, key, obj, opts...); err != nil {
		return err
	}
	switch {
	case i.late(obj):
		return apierrors.NewNotFound(schema.GroupResource{}, key.Name)
	case i.damaged(obj):
		return apierrors.NewInternalError(fmt.Errorf("%s is damaged", key))
	}
	return nil
}

// List reads the objects that have come to the image.
func (i image) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	if err := i.World.List(ctx, list, opts...); err != nil {
		return err
	}
	all, err := meta.ExtractList(list)
	if err != nil {
		return err
	}
	var shown []runtime.Object
	var damaged error
	for _, item := range all {
		obj, ok := item.(client.Object)
		switch {
		case ok && i.late(obj):
		case ok && i.damaged(obj):
			damaged = &apierrors.StatusError{ErrStatus: metav1.Status{
				Status: metav1.StatusFailure, Reason: metav1.StatusReasonStoreReadError, Message: obj.GetName() + " is damaged",
			}}
		default:
			shown = append(shown, item)
		}
	}
	if len(shown) < len(all) {
		if err := meta.SetList(list, shown); err != nil {
			return err
		}
	}
	return damaged
}

// Follow tells of what has come to the image. What comes late, nobody is told of.
func (i image) Follow(ctx context.Context, kind client.Object, synced func(), handle func(barqueclient.Event)) error {
	return i.World.Follow(ctx, kind, synced, func(e barqueclient.Event) {
		if !i.late(e.Object()) && !i.damaged(e.Object()) {
			handle(e)
		}
	})
}

func (w *World) catchUp(context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.Cut == nil {
		w.Late = nil
	}
	return w.Cut
}
