package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/restmapper"

	"barque.dev/examples"
	"barque.dev/internal/runtime/images"
)

// DeploySample puts the sample application's images on every machine, applies its manifest and
// waits until its URL, which it returns, answers.
func (c *Cluster) DeploySample(ctx context.Context, progress func(string, ...any)) (string, error) {
	if err := c.ImportSample(ctx); err != nil {
		return "", err
	}
	progress("the sample application's images are on every machine")
	if err := c.applySample(ctx); err != nil {
		return "", fmt.Errorf("deploy the sample application: %w", err)
	}
	url := "http://" + netip.AddrPortFrom(c.VIP, examples.HelloNodePort).String()
	if err := answers(ctx, url); err != nil {
		return "", fmt.Errorf("%w: see `kubectl get pods` and `kubectl describe pods`", err)
	}
	progress("the sample application answers at %s", url)
	return url, nil
}

// ImportSample puts the sample application's images on all machines at once, where they are not there yet.
func (c *Cluster) ImportSample(ctx context.Context) error {
	errs := make([]error, len(c.Machines))
	var wg sync.WaitGroup
	for i, m := range c.Machines {
		wg.Go(func() {
			socket, err := m.ContainerdSocket()
			if err != nil {
				errs[i] = err
				return
			}
			errs[i] = importSampleTo(ctx, socket)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("import the sample application's images: %w", err)
	}
	return nil
}

func importSampleTo(ctx context.Context, socket string) error {
	store, err := images.Open(socket)
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	have, err := store.List(ctx)
	if err != nil {
		return err
	}
	found := 0
	for _, image := range have {
		if image.Name == examples.HelloV1 || image.Name == examples.HelloV2 {
			found++
		}
	}
	if found == 2 {
		return nil
	}
	archive, err := examples.HelloImages()
	if err != nil {
		return err
	}
	defer func() { _ = archive.Close() }()
	_, err = store.Import(ctx, archive)
	return err
}

// applySample applies the manifest in the namespace default, unless the Deployment is there: the
// user may have changed it.
func (c *Cluster) applySample(ctx context.Context) error {
	config, err := c.Config()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	if _, err := client.AppsV1().Deployments(metav1.NamespaceDefault).Get(ctx, "hello", metav1.GetOptions{}); err == nil {
		return nil
	}
	objects, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(client.Discovery()))
	manifest, err := examples.HelloManifest()
	if err != nil {
		return err
	}
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifest), 4096)
	for {
		var obj unstructured.Unstructured
		if err := decoder.Decode(&obj); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if obj.Object == nil {
			continue
		}
		gvk := obj.GroupVersionKind()
		mapping, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
		if err != nil {
			return err
		}
		data, err := obj.MarshalJSON()
		if err != nil {
			return err
		}
		_, err = objects.Resource(mapping.Resource).Namespace(metav1.NamespaceDefault).
			Patch(ctx, obj.GetName(), types.ApplyPatchType, data, metav1.PatchOptions{FieldManager: "barque-up"})
		if err != nil {
			return fmt.Errorf("%s %s: %w", gvk.Kind, obj.GetName(), err)
		}
	}
}

// answers waits until the URL answers with 200.
func answers(ctx context.Context, url string) error {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(resp.Status)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the sample application does not answer at %s: %w", url, err)
		case <-tick.C:
		}
	}
}
