package statefulset

import (
	"sigs.k8s.io/controller-runtime/pkg/client"

	barqueclient "barque.dev/internal/client"
)

func removed(obj client.Object) barqueclient.Event { return barqueclient.Event{Old: obj} }
