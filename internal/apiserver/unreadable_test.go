package apiserver_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"barque.dev/internal/store/etcd/etcdtest"
)

// A list with objects that can't be read names them, in whatever form it was asked for; who may, can remove them.
func TestObjectsThatCannotBeRead(t *testing.T) {
	member := etcdtest.New(t, 1, nil).Member(0)
	c := startOn(t, member, nil)
	for _, name := range []string{"a", "b"} {
		if _, err := member.Txn(t.Context(), &etcdserverpb.TxnRequest{Success: []*etcdserverpb.RequestOp{{
			Request: &etcdserverpb.RequestOp_RequestPut{RequestPut: &etcdserverpb.PutRequest{
				Key: []byte("/registry/configmaps/default/" + name), Value: []byte("k8s\x00garbage"),
			}},
		}}}); err != nil {
			t.Fatal(err)
		}
	}
	url := c.url + "/api/v1/namespaces/default/configmaps"
	for _, accept := range []string{"application/json", "application/json;as=Table;g=meta.k8s.io;v=v1", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"} {
		a := do(t, c.admin(t), "GET", url, nil, "Accept", accept)
		var status metav1.Status
		if err := json.Unmarshal([]byte(a.body), &status); err != nil || a.code != http.StatusInternalServerError || status.Reason != metav1.StatusReasonStoreReadError {
			t.Fatalf("%s: %d %s (%v)", accept, a.code, a.body, err)
		}
		var keys []string
		for _, cause := range status.Details.Causes {
			keys = append(keys, cause.Field)
		}
		if got := strings.Join(keys, " "); got != "/registry/configmaps/default/a /registry/configmaps/default/b" {
			t.Errorf("%s: causes %s", accept, got)
		}
	}

	c.grant(t, rbacv1.Subject{Kind: "User", Name: "jane"}, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"delete"}})
	const ignoring = `{"kind":"DeleteOptions","apiVersion":"v1","ignoreStoreReadErrorWithClusterBreakingPotential":true}`
	remove := func(client *http.Client, name string) answer {
		return do(t, client, "DELETE", url+"/"+name, strings.NewReader(ignoring), "Content-Type", "application/json")
	}
	if a := remove(c.http(t, "jane"), "a"); a.code != http.StatusForbidden || !strings.Contains(a.body, "unsafe-delete-ignore-read-errors") {
		t.Errorf("who may delete, but not so: %d %s", a.code, a.body)
	}
	for _, name := range []string{"a", "b"} {
		if a := remove(c.admin(t), name); a.code != http.StatusOK {
			t.Errorf("%s: %d %s", name, a.code, a.body)
		}
	}
	if a := do(t, c.admin(t), "GET", url, nil); a.code != http.StatusOK {
		t.Errorf("the list: %d %s", a.code, a.body)
	}
}
