package balance

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

// followRetry is the pause after a watch that failed.
const followRetry = time.Second

// Follow learns the servers from the EndpointSlices of the Service default/kubernetes until ctx
// ends. client may be one that is balanced itself.
func (b *Balancer) Follow(ctx context.Context, client kubernetes.Interface) error {
	for {
		err := b.follow(ctx, client)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			b.config.Log.Debug("following the list of servers", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followRetry):
		}
	}
}

// follow lists and then watches until the watch ends.
func (b *Balancer) follow(ctx context.Context, client kubernetes.Interface) error {
	api := client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault)
	options := metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=kubernetes"}
	list, err := api.List(ctx, options)
	if err != nil {
		return fmt.Errorf("list EndpointSlices: %w", err)
	}
	known := map[string]*discoveryv1.EndpointSlice{}
	for i := range list.Items {
		known[list.Items[i].Name] = &list.Items[i]
	}
	if err := b.Set(addressesOf(known)); err != nil {
		return err
	}
	options.ResourceVersion, options.AllowWatchBookmarks = list.ResourceVersion, true
	w, err := api.Watch(ctx, options)
	if err != nil {
		return fmt.Errorf("watch EndpointSlices: %w", err)
	}
	defer w.Stop()
	for {
		var event watch.Event
		var open bool
		select {
		case <-ctx.Done():
			return nil
		case event, open = <-w.ResultChan():
		}
		if !open {
			return nil
		}
		slice, ok := event.Object.(*discoveryv1.EndpointSlice)
		if !ok {
			return fmt.Errorf("watch EndpointSlices: got %s %T", event.Type, event.Object)
		}
		switch event.Type {
		case watch.Added, watch.Modified:
			known[slice.Name] = slice
		case watch.Deleted:
			delete(known, slice.Name)
		default:
			continue
		}
		if err := b.Set(addressesOf(known)); err != nil {
			return err
		}
	}
}

// addressesOf returns the servers in slices, sorted. Endpoints that are not ready are among
// them: whether a server is healthy the client finds out itself.
func addressesOf(known map[string]*discoveryv1.EndpointSlice) []string {
	var out []string
	for _, slice := range known {
		port := int32(0)
		for _, p := range slice.Ports {
			if p.Port != nil && (port == 0 || p.Name != nil && *p.Name == "https") {
				port = *p.Port
			}
		}
		if port == 0 {
			continue
		}
		for _, endpoint := range slice.Endpoints {
			for _, address := range endpoint.Addresses {
				out = append(out, net.JoinHostPort(address, strconv.Itoa(int(port))))
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
