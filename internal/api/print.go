package api

import (
	"context"
	"fmt"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/printers"
	internalprinters "k8s.io/kubernetes/pkg/printers/internalversion"
)

// tables knows how kubectl get shows every built-in kind; built at first use, because most
// requests never need it.
var tables = sync.OnceValue(func() *printers.HumanReadableGenerator {
	return printers.NewTableGenerator().With(internalprinters.AddHandlers)
})

// printerOf makes the Printer of a built-in kind.
func printerOf(kind string, storage schema.GroupVersion) Printer {
	hub := hubOf(storage.Group)
	return func(ctx context.Context, objects []runtime.Object, options *metav1.TableOptions) (*metav1.Table, error) {
		empty, err := Scheme().New(hub.WithKind(kind + "List"))
		if err != nil {
			return nil, fmt.Errorf("print %s: %w", kind, err)
		}
		// An empty list has no rows, but the columns. A few kinds have no columns of their own.
		table, err := generate(empty, options)
		if err != nil {
			return PrintPlain(ctx, objects, options)
		}
		for _, obj := range objects {
			one, err := printHub(obj, hub, options)
			if err != nil {
				return nil, fmt.Errorf("print %s: %w", kind, err)
			}
			table.Rows = append(table.Rows, one.Rows...)
		}
		return table, nil
	}
}

// PrintSubresource prints what a subresource shows that is not of its resource's kind, such as a Scale.
func PrintSubresource(ctx context.Context, obj runtime.Object, options *metav1.TableOptions) (*metav1.Table, error) {
	kinds, _, err := Scheme().ObjectKinds(obj)
	if err != nil {
		return nil, fmt.Errorf("print %T: %w", obj, err)
	}
	table, err := printHub(obj, hubOf(kinds[0].Group), options)
	if err != nil { // it has no columns of its own
		return PrintPlain(ctx, []runtime.Object{obj}, options)
	}
	return table, nil
}

func hubOf(group string) schema.GroupVersion {
	return schema.GroupVersion{Group: group, Version: runtime.APIVersionInternal}
}

// printHub prints an object in the version that the borrowed printers know.
func printHub(obj runtime.Object, hub schema.GroupVersion, options *metav1.TableOptions) (*metav1.Table, error) {
	converted, err := Scheme().ConvertToVersion(obj, hub)
	if err != nil {
		return nil, err
	}
	return generate(converted, options)
}

func generate(obj runtime.Object, options *metav1.TableOptions) (*metav1.Table, error) {
	return tables().GenerateTable(obj, printers.GenerateOptions{Wide: true, NoHeaders: options != nil && options.NoHeaders})
}

// PrintPlain is the Printer of kinds that have no columns of their own: name and creation time.
func PrintPlain(ctx context.Context, objects []runtime.Object, options *metav1.TableOptions) (*metav1.Table, error) {
	if options == nil {
		options = &metav1.TableOptions{}
	}
	plain := rest.NewDefaultTableConvertor(schema.GroupResource{})
	table, err := plain.ConvertToTable(ctx, &metav1.PartialObjectMetadataList{}, options)
	if err != nil {
		return nil, fmt.Errorf("print: %w", err)
	}
	for _, obj := range objects {
		one, err := plain.ConvertToTable(ctx, obj, options)
		if err != nil {
			return nil, fmt.Errorf("print %T: %w", obj, err)
		}
		table.Rows = append(table.Rows, one.Rows...)
	}
	return table, nil
}
