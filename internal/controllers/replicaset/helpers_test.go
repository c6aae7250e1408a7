package replicaset

import (
	"sigs.k8s.io/controller-runtime/pkg/client"

	barqueclient "barque.dev/internal/client"
)

func eventOf(obj client.Object) barqueclient.Event { return barqueclient.Event{New: obj} }
