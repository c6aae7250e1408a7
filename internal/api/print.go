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
	internal := schema.GroupVersion{Group: storage.Group, Version: runtime.APIVersionInternal}
	return func(ctx context.Context, objects []runtime.Object, options *metav1.TableOptions) (*metav1.Table, error) {
		generate := printers.GenerateOptions{Wide: true, NoHeaders: options != nil && options.NoHeaders}
		empty, err := Scheme().New(internal.WithKind(kind + "List"))
		if err != nil {
			return nil, fmt.Errorf("print %s: %w", kind, err)
		}
		// An empty list has no rows, but the columns. A few kinds have no columns of their own.
		table, err := tables().GenerateTable(empty, generate)
		if err != nil {
			return PrintPlain(ctx, objects, options)
		}
		for _, obj := range objects {
			hub, err := Scheme().ConvertToVersion(obj, internal)
			if err != nil {
				return nil, fmt.Errorf("print %s: %w", kind, err)
			}
			one, err := tables().GenerateTable(hub, generate)
			if err != nil {
				return nil, fmt.Errorf("print %s: %w", kind, err)
			}
			table.Rows = append(table.Rows, one.Rows...)
		}
		return table, nil
	}
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
