package apiserver

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/api/validate/content"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"
)

// Selectors are read late: what is wrong with one may take much longer to say than to send. The path, and whether it is
// a watch, tell what a request wants; nothing in the query is parsed before it is known who asks. Then a field
// selector may say that it is about one object, which authorization has to know (readName); authorizers that care for selectors
// have them parsed (attributes); and what lists and watches show is decided last, when they may.

// requestInfo is what a request wants, as far as that can be told without parsing selectors.
func (s *Server) requestInfo(req *http.Request) (*request.RequestInfo, error) {
	if req.URL.RawQuery == "" {
		return s.resolver.NewRequestInfo(req)
	}
	bare := http.Request{Method: req.Method, URL: &url.URL{Path: req.URL.Path}}
	info, err := s.resolver.NewRequestInfo(&bare)
	if err != nil {
		return s.resolver.NewRequestInfo(req) // whose error shows all of the URL
	}
	if info.Verb != "list" && info.Verb != "deletecollection" {
		return info, nil // paths of watches have no selectors
	}
	query := req.URL.Query()
	if watch := query["watch"]; info.Verb == "list" && len(watch) > 0 && !strings.EqualFold(watch[0], "false") && watch[0] != "0" {
		info.Verb = "watch"
	}
	if v := query["fieldSelector"]; len(v) > 0 {
		info.FieldSelector = v[0]
	}
	if v := query["labelSelector"]; len(v) > 0 {
		info.LabelSelector = v[0]
	}
	return info, nil
}

// readName takes the name of the one object that a list or watch is about from its field selector. Options that can't be
// read name nothing.
func (c *call) readName(req *http.Request) {
	info := c.info
	if info.Verb != "list" && info.Verb != "watch" || info.Name != "" || !strings.Contains(info.FieldSelector, "metadata.name") {
		return
	}
	if checkSelector(info.LabelSelector) != nil {
		return
	}
	opts := metainternalversion.ListOptions{}
	if err := options(req, &opts); err != nil || opts.FieldSelector == nil {
		return
	}
	name, ok := opts.FieldSelector.RequiresExactMatch("metadata.name")
	if !ok || len(content.IsPathSegmentName(name)) > 0 {
		return
	}
	info.Name = name
	c.reported.scope = "resource"
}

// attributes are what authorizers see of a request. Those that ask for its selectors have them parsed.
type attributes struct {
	authorizer.AttributesRecord
	info   *request.RequestInfo
	fields func() (fields.Requirements, error)
	labels func() (labels.Requirements, error)
}

func newAttributes(req *http.Request, info *request.RequestInfo) *attributes {
	a := &attributes{info: info, AttributesRecord: authorizer.AttributesRecord{
		Verb: info.Verb, Path: info.Path, ResourceRequest: info.IsResourceRequest, Namespace: info.Namespace, Name: info.Name,
		APIGroup: info.APIGroup, APIVersion: info.APIVersion, Resource: info.Resource, Subresource: info.Subresource,
	}}
	if who, ok := request.UserFrom(req.Context()); ok {
		a.User = who
	}
	if info.FieldSelector != "" {
		a.fields = sync.OnceValues(a.parseFields)
	}
	if info.LabelSelector != "" {
		a.labels = sync.OnceValues(a.parseLabels)
	}
	return a
}

// GetFieldSelector is what the field selector requires, or why it can't be read.
func (a *attributes) GetFieldSelector() (fields.Requirements, error) {
	if a.fields == nil {
		return nil, nil
	}
	return a.fields()
}

// GetLabelSelector is what the label selector requires, or why it can't be read.
func (a *attributes) GetLabelSelector() (labels.Requirements, error) {
	if a.labels == nil {
		return nil, nil
	}
	return a.labels()
}

func (a *attributes) parseFields() (fields.Requirements, error) {
	selector, err := fields.ParseSelector(a.info.FieldSelector)
	if err != nil {
		return nil, err
	}
	if all := selector.Requirements(); len(all) > 0 {
		return all, nil
	}
	return nil, nil
}

func (a *attributes) parseLabels() (labels.Requirements, error) {
	if err := checkSelector(a.info.LabelSelector); err != nil {
		return nil, err
	}
	selector, err := labels.Parse(a.info.LabelSelector)
	if err != nil {
		return nil, err
	}
	if all, _ := selector.Requirements(); len(all) > 0 {
		return all, nil
	}
	return nil, nil
}

const (
	// harmlessSelector is up to which length, in bytes, a selector is not looked at before it is parsed.
	harmlessSelector = 8 << 10
	// wrongParts is how many parts of a longer one may be wrong. Upstream's parser explains at length what is wrong with each.
	wrongParts = 100
	// maxPart is the length of the longest part that a selector can have in bytes: a key with its prefix (253 + 1 + 63).
	maxPart = 317
)

var errAbsurd = errors.New("the selector is too long for having so much wrong with it")

// checkSelector refuses long label selectors that are mostly wrong. What it lets through may be wrong still. (Field selectors
// have no such rules, and their parser stops at the first error.)
func checkSelector(selector string) error {
	if len(selector) <= harmlessSelector {
		return nil
	}
	wrong := 0
	for part := range strings.FieldsFuncSeq(selector, separates) {
		if len(part) > maxPart || strings.ContainsFunc(part, impossible) || !alphanumeric(part[0]) || !alphanumeric(part[len(part)-1]) ||
			len(part) > 63 && !strings.Contains(part, "/") {
			if wrong++; wrong > wrongParts {
				return fmt.Errorf("%w: more than %d of its keys and values are invalid", errAbsurd, wrongParts)
			}
		}
	}
	return nil
}

// separates tells whether a character stands between the keys, operators and values of a selector.
func separates(r rune) bool { return strings.ContainsRune(",()=!<> \t\r\n", r) }

// impossible tells whether no key and no value has a character.
func impossible(r rune) bool {
	return r > 'z' || !alphanumeric(byte(r)) && !strings.ContainsRune("-_./", r)
}

func alphanumeric(b byte) bool {
	return b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z'
}
