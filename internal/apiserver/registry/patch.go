package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/mergepatch"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"
	"k8s.io/apiserver/pkg/warning"
	kjson "sigs.k8s.io/json"

	"barque.dev/internal/api"
	"barque.dev/internal/apiserver/nesting"
	"barque.dev/internal/apiserver/ownership"
)

const (
	// maxPatchOperations bounds a JSON patch.
	maxPatchOperations = 10000
	// maxPatchCopies bounds, in bytes, what the copy operations of a JSON patch add to the object.
	maxPatchCopies = 3 << 20
)

// boundCopies tells the library of the bound, which it has for the whole process: a few dozen operations that
// copy what was copied before would fill any memory.
var boundCopies = sync.OnceFunc(func() { jsonpatch.AccumulatedCopySizeLimit = maxPatchCopies })

// patch is a patch request under way.
type patch struct {
	req    Request
	kind   types.PatchType
	body   []byte
	opts   *metav1.PatchOptions
	fields *ownership.Recorder
}

// strict tells whether unknown and repeated fields matter, be it for an error or a warning.
func (p *patch) strict() bool { return p.opts.FieldValidation != metav1.FieldValidationIgnore }

// Patch changes an object by a JSON, merge or strategic merge patch, or applies a configuration to
// it (server-side apply, which may create it; created tells).
func (r *Registry) Patch(ctx context.Context, req Request, kind types.PatchType, body []byte, opts *metav1.PatchOptions) (Result, bool, error) {
	if !req.allows("patch") {
		return Result{}, false, methodNotSupported(req, "patch")
	}
	if opts == nil {
		opts = &metav1.PatchOptions{}
	}
	if errs := metav1validation.ValidatePatchOptions(opts, kind); len(errs) > 0 {
		return Result{}, false, apierrors.NewInvalid(kindOf(metav1.GroupName, "PatchOptions"), "", errs)
	}
	if kind != types.ApplyYAMLPatchType && !json.Valid(body) {
		return Result{}, false, apierrors.NewBadRequest("invalid JSON patch")
	}
	check := nesting.CheckJSON
	if kind == types.ApplyYAMLPatchType {
		check = nesting.CheckYAML
	}
	if err := check(body); err != nil {
		return Result{}, false, apierrors.NewRequestEntityTooLargeError(err.Error())
	}
	v, err := r.viewOf(req)
	if err != nil {
		return Result{}, false, err
	}
	fields, err := r.fields.of(req)
	if err != nil {
		return Result{}, false, err
	}
	ctx = r.context(ctx, req, "patch")
	p := &patch{req: req, kind: kind, body: body, opts: opts, fields: fields}
	update := &metav1.UpdateOptions{DryRun: opts.DryRun, FieldManager: opts.FieldManager, FieldValidation: opts.FieldValidation}
	update.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("UpdateOptions"))
	c := change{
		op:   operation{req: req, op: admission.Update, options: update, dryRun: isDryRun(opts.DryRun), name: req.Name},
		view: v, creates: kind == types.ApplyYAMLPatchType && req.Subresource == "",
		make: func(ctx context.Context, live runtime.Object) (runtime.Object, error) {
			out, err := p.apply(ctx, live)
			if err != nil {
				return nil, err
			}
			_, err = checkObject(req, out)
			return out, err
		},
	}
	result, created, err := r.modify(ctx, c)
	if err != nil {
		return Result{}, false, err
	}
	return shown(v, result, created)
}

// apply makes the patched object of the one that exists.
func (p *patch) apply(ctx context.Context, live runtime.Object) (runtime.Object, error) {
	var out runtime.Object
	var err error
	var ok bool
	switch p.kind {
	case types.JSONPatchType:
		out, err = p.applyJSON(ctx, live)
	case types.MergePatchType:
		out, ok = p.patchPart(live, p.mergePart)
		if !ok {
			out, err = p.applyJSON(ctx, live)
		}
	case types.StrategicMergePatchType:
		out, ok = p.patchPart(live, mergePartStrategic)
		if !ok {
			out, err = p.applyStrategic(ctx, live)
		}
	case types.ApplyYAMLPatchType:
		return p.applyConfiguration(ctx, live)
	default:
		return nil, negotiation.NewUnsupportedMediaTypeError([]string{
			string(types.JSONPatchType), string(types.MergePatchType), string(types.StrategicMergePatchType), string(types.ApplyYAMLPatchType)})
	}
	if err != nil {
		return nil, err
	}
	if p.req.Subresource != "scale" {
		if out, err = normalize(p.req, out); err != nil {
			return nil, err
		}
	}
	return p.fields.UpdateNoErrors(live, out, manager(ctx, p.opts.FieldManager)), nil
}

// applyJSON patches the object's JSON and reads the outcome.
func (p *patch) applyJSON(ctx context.Context, live runtime.Object) (runtime.Object, error) {
	before, err := json.Marshal(live)
	if err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("encode %s: %w", p.req.Name, err))
	}
	after, complaints, err := p.patchJSON(before)
	if err != nil {
		return nil, err
	}
	if err := nesting.CheckJSON(after); err != nil { // operations have paths of their own, and copy
		return nil, apierrors.NewRequestEntityTooLargeError(err.Error())
	}
	out, err := p.decode(after)
	if strict, ok := runtime.AsStrictDecodingError(err); ok && out != nil {
		complaints = append(complaints, strict.Errors()...)
		err = nil
	}
	if err != nil {
		return nil, invalidPatch(string(after), err)
	}
	return out, p.complain(ctx, string(after), complaints)
}

func (p *patch) decode(data []byte) (runtime.Object, error) {
	if p.req.Subresource == "scale" {
		return api.DecodeJSON(data, scaleKind(), p.strict())
	}
	return p.req.Resource.Codec().DecodeJSON(data, p.req.gv(), p.strict())
}

func (p *patch) patchJSON(before []byte) (after []byte, complaints []error, err error) {
	if p.kind == types.MergePatchType {
		if p.strict() {
			if complaints, err = kjson.UnmarshalStrict(p.body, &map[string]any{}); err != nil {
				return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
			}
		}
		after, err = jsonpatch.MergePatch(before, p.body)
		if err != nil {
			return nil, nil, apierrors.NewBadRequest(err.Error())
		}
		return after, complaints, nil
	}
	if p.strict() {
		var operations []struct {
			Op    string `json:"op"`
			Path  string `json:"path"`
			From  string `json:"from"`
			Value any    `json:"value"`
		}
		if complaints, err = kjson.UnmarshalStrict(p.body, &operations); err != nil {
			return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
		}
		for i := range complaints {
			complaints[i] = fmt.Errorf("json patch %w", complaints[i])
		}
	}
	operations, err := jsonpatch.DecodePatch(p.body)
	if err != nil {
		return nil, nil, apierrors.NewBadRequest(err.Error())
	}
	if len(operations) > maxPatchOperations {
		return nil, nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf(
			"The allowed maximum operations in a JSON patch is %d, got %d", maxPatchOperations, len(operations)))
	}
	boundCopies()
	after, err = operations.Apply(before)
	if err != nil {
		return nil, nil, unprocessable(err)
	}
	return after, complaints, nil
}

// applyStrategic merges lists and maps by the keys that the kind's Go type names.
func (p *patch) applyStrategic(ctx context.Context, live runtime.Object) (runtime.Object, error) {
	before, err := runtime.DefaultUnstructuredConverter.ToUnstructured(live)
	if err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("encode %s: %w", p.req.Name, err))
	}
	changes := map[string]any{}
	var complaints []error
	if p.strict() {
		complaints, err = kjson.UnmarshalStrict(p.body, &changes)
	} else {
		err = kjson.UnmarshalCaseSensitivePreserveInts(p.body, &changes)
	}
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	out, err := kindCreater{}.New(p.req.kind())
	if err != nil {
		return nil, negotiation.NewUnsupportedMediaTypeError([]string{
			string(types.JSONPatchType), string(types.MergePatchType), string(types.ApplyYAMLPatchType)})
	}
	after, err := strategicpatch.StrategicMergeMapPatch(before, changes, out)
	if err != nil {
		return nil, strategicError(err)
	}
	err = runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(after, out, p.strict())
	if strict, ok := runtime.AsStrictDecodingError(err); ok {
		complaints = append(complaints, strict.Errors()...)
		err = nil
	}
	if err != nil {
		return nil, invalidPatch(fmt.Sprintf("%+v", changes), err)
	}
	if err := p.complain(ctx, fmt.Sprintf("%+v", changes), complaints); err != nil {
		return nil, err
	}
	api.Scheme().Default(out)
	return out, nil
}

// applyConfiguration merges what a manager wants with what others own.
func (p *patch) applyConfiguration(ctx context.Context, live runtime.Object) (runtime.Object, error) {
	wanted := &unstructured.Unstructured{Object: map[string]any{}}
	if err := yaml.Unmarshal(p.body, &wanted.Object); err != nil {
		// Stock makes JSON of what is not JSON before it decodes anything, and words the two failures apart.
		text, broken := strings.CutPrefix(err.Error(), "error converting YAML to JSON: ")
		if broken && !yaml.IsJSONBuffer(p.body) {
			return nil, apierrors.NewBadRequest("error encoding patch: " + text)
		}
		return nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
	}
	force := p.opts.Force != nil && *p.opts.Force
	out, err := p.fields.Apply(live, wanted, p.opts.FieldManager, force)
	if err != nil {
		return nil, applyError(err)
	}
	if p.strict() {
		if err := yaml.UnmarshalStrict(p.body, &map[string]any{}); err != nil {
			if p.opts.FieldValidation == metav1.FieldValidationStrict {
				return nil, apierrors.NewBadRequest(fmt.Sprintf("error strict decoding patch: %v", err))
			}
			warning.AddWarning(ctx, "", err.Error())
		}
	}
	return out, nil
}

// applyError is what is wrong with a configuration, or with the object that it was applied to. Which of them it is the
// library tells by its words alone.
func applyError(err error) error {
	for _, head := range []string{"failed to create typed patch object ", "failed to convert new typed object ", "failed to convert new object "} {
		if strings.HasPrefix(err.Error(), head) {
			return apierrors.NewBadRequest(err.Error())
		}
	}
	return err
}

// complain reports unknown and repeated fields as the client asked: as an error or as warnings,
// which is the default.
func (p *patch) complain(ctx context.Context, what string, complaints []error) error {
	if len(complaints) == 0 {
		return nil
	}
	if p.opts.FieldValidation == metav1.FieldValidationStrict {
		return invalidPatch(what, runtime.NewStrictDecodingError(complaints))
	}
	for _, c := range complaints {
		warning.AddWarning(ctx, "", c.Error())
	}
	return nil
}

func invalidPatch(what string, err error) error {
	return apierrors.NewInvalid(schema.GroupKind{}, "", field.ErrorList{
		field.Invalid(field.NewPath("patch"), what, err.Error())})
}

func unprocessable(err error) error {
	return apierrors.NewGenericServerResponse(http.StatusUnprocessableEntity, "", schema.GroupResource{}, "", err.Error(), 0, false)
}

// strategicError is what a strategic merge patch did wrong: the object that it is merged into is one of ours. Stock
// answers 500 where the library has no error of its own kind, such as for a list of another type.
func strategicError(err error) error {
	if errors.Is(err, mergepatch.ErrNoListOfLists) || errors.Is(err, mergepatch.ErrPatchContentNotMatchRetainKeys) {
		return unprocessable(err)
	}
	return apierrors.NewBadRequest(err.Error())
}
