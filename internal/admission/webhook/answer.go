package webhook

import (
	"encoding/json"
	"fmt"
)

// maxOperations bounds the operations of a webhook's patch, as for those of clients.
const maxOperations = 10000

// checkPatch holds an answer's patch to its bound. Whether the answer is well-formed is for its reader to say.
func checkPatch(body []byte) error {
	var review struct {
		Response struct {
			Patch []byte `json:"patch"`
		} `json:"response"`
	}
	if json.Unmarshal(body, &review) != nil || len(review.Response.Patch) == 0 {
		return nil
	}
	var operations []json.RawMessage
	if json.Unmarshal(review.Response.Patch, &operations) == nil && len(operations) > maxOperations {
		return fmt.Errorf("the allowed maximum operations in a webhook's patch is %d, got %d", maxOperations, len(operations))
	}
	return nil
}
