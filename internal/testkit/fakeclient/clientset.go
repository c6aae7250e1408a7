package fakeclient

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/testing"
)

// Clientset is client-go's fake, whose watches hand out objects of their own, as a server's do: upstream's
// hands out those that it keeps, and an informer that changes what it gets races with whoever reads them.
func Clientset() *fake.Clientset {
	c := fake.NewClientset()
	c.PrependWatchReactor("*", func(action testing.Action) (bool, watch.Interface, error) {
		var opts metav1.ListOptions
		if w, ok := action.(testing.WatchActionImpl); ok {
			opts = w.ListOptions
		}
		w, err := c.Tracker().Watch(action.GetResource(), action.GetNamespace(), opts)
		if err != nil {
			return true, nil, fmt.Errorf("watch %s: %w", action.GetResource(), err)
		}
		return true, copied(w), nil
	})
	return c
}

// copied hands on what a watch has to say, with copies of its objects.
func copied(from watch.Interface) watch.Interface {
	events := make(chan watch.Event)
	to := watch.NewProxyWatcher(events)
	go func() {
		defer close(events)
		defer from.Stop()
		for {
			select {
			case e, ok := <-from.ResultChan():
				if !ok {
					return
				}
				e.Object = e.Object.DeepCopyObject()
				select {
				case events <- e:
				case <-to.StopChan():
					return
				}
			case <-to.StopChan():
				return
			}
		}
	}()
	return to
}
