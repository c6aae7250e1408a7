package client

import (
	"encoding/json"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// PatchSame makes a strategic merge patch of what was changed since from. It names the object's UID: where another
// object has taken the name meanwhile, as the pods of StatefulSets do, it is refused as a conflict. See [IgnoreGone].
func PatchSame(from client.Object) client.Patch { return same{client.StrategicMergeFrom(from), from} }

type same struct {
	client.Patch
	from client.Object
}

// Data implements client.Patch.
func (s same) Data(obj client.Object) ([]byte, error) {
	data, err := s.Patch.Data(obj)
	if err != nil {
		return nil, err
	}
	changes := map[string]any{}
	if err := json.Unmarshal(data, &changes); err != nil {
		return nil, fmt.Errorf("patch %s/%s: %w", obj.GetNamespace(), obj.GetName(), err)
	}
	metadata, ok := changes["metadata"].(map[string]any)
	if !ok {
		metadata = map[string]any{}
	}
	metadata["uid"] = s.from.GetUID()
	changes["metadata"] = metadata
	return json.Marshal(changes)
}

// IgnoreGone returns nil for the errors by which a write that names a UID finds that the object is gone: nothing has its
// name, or something else has.
func IgnoreGone(err error) error {
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}
