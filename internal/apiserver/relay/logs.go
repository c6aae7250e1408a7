package relay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// errorLimit is how much of a kubelet's error is passed on, in bytes.
const errorLimit = 4 << 10

// Logs serves a container's log.
func (r *Relay) Logs(ctx context.Context, namespace, name string, opts *corev1.PodLogOptions, fail Fail) (http.Handler, error) {
	if errs := validateLogOptions(opts); len(errs) > 0 {
		return nil, apierrors.NewInvalid(schema.GroupKind{Kind: "PodLogOptions"}, name, errs)
	}
	pod, err := r.objects.Pod(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	container, err := chooseContainer(pod, opts.Container)
	if err != nil {
		return nil, err
	}
	if pod.Spec.NodeName == "" {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }), nil
	}
	location, err := r.kubeletURL(ctx, pod.Spec.NodeName, fmt.Sprintf("/containerLogs/%s/%s/%s", pod.Namespace, pod.Name, container), logParams(opts))
	if err != nil {
		return nil, err
	}
	transport := r.kubelets
	if opts.InsecureSkipTLSVerifyBackend {
		transport = r.insecure
	}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		out, err := http.NewRequestWithContext(req.Context(), http.MethodGet, location.String(), nil)
		if err != nil {
			fail(w, req, err)
			return
		}
		resp, err := transport.RoundTrip(out)
		if err != nil {
			fail(w, req, apierrors.NewInternalError(fmt.Errorf("get logs of %s/%s from node %s: %w", namespace, name, pod.Spec.NodeName, err)))
			return
		}
		defer resp.Body.Close()
		if err := logError(resp, name); err != nil {
			fail(w, req, err)
			return
		}
		if wsstream.IsWebSocketRequest(req) {
			// The library drops what is read together with the end, which a buffer keeps apart.
			log := bufio.NewReaderSize(resp.Body, 32<<10)
			// An error can only be the client's end: the connection is its own by now.
			_ = wsstream.NewReader(log, true, wsstream.NewDefaultReaderProtocols()).Copy(w, req)
			return
		}
		copyLog(w, resp.Body, opts.Follow)
	}), nil
}

// logError turns a kubelet's refusal into an API error with its words.
func logError(resp *http.Response, name string) error {
	if resp.StatusCode >= http.StatusOK && resp.StatusCode < http.StatusMultipleChoices {
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, errorLimit))
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	pods := schema.GroupResource{Resource: "pods/log"}
	switch resp.StatusCode {
	case http.StatusInternalServerError:
		return apierrors.NewInternalError(fmt.Errorf("%s", text))
	case http.StatusBadRequest:
		return apierrors.NewBadRequest(string(text))
	}
	return apierrors.NewGenericServerResponse(resp.StatusCode, "", pods, name, string(text), 0, true)
}

// copyLog writes a log. One that is followed is flushed whenever something arrives, as each line is
// waited for.
func copyLog(w http.ResponseWriter, body io.Reader, follow bool) {
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(http.StatusOK)
	if !follow {
		_, _ = io.Copy(w, body) // the head is out; a short log is all that can tell of an error
		return
	}
	flusher := http.NewResponseController(w)
	_ = flusher.Flush()
	buf := make([]byte, 32<<10)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return
			}
			if ferr := flusher.Flush(); ferr != nil {
				return
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				panic(http.ErrAbortHandler) // so that the client sees that there was more
			}
			return
		}
	}
}

func validateLogOptions(opts *corev1.PodLogOptions) field.ErrorList {
	var errs field.ErrorList
	atLeast := func(name string, v *int64, least int64) {
		if v != nil && *v < least {
			errs = append(errs, field.Invalid(field.NewPath(name), *v, fmt.Sprintf("must be greater than or equal to %d", least)))
		}
	}
	atLeast("tailLines", opts.TailLines, 0)
	atLeast("limitBytes", opts.LimitBytes, 1)
	atLeast("sinceSeconds", opts.SinceSeconds, 1)
	if opts.SinceSeconds != nil && opts.SinceTime != nil {
		errs = append(errs, field.Forbidden(field.NewPath(""), "at most one of `sinceTime` or `sinceSeconds` may be specified"))
	}
	if opts.Stream != nil {
		switch *opts.Stream {
		case corev1.LogStreamAll:
		case corev1.LogStreamStdout, corev1.LogStreamStderr:
			if opts.TailLines != nil {
				errs = append(errs, field.Forbidden(field.NewPath(""), "`tailLines` and specific `stream` are mutually exclusive for now"))
			}
		default:
			errs = append(errs, field.NotSupported(field.NewPath("stream"), *opts.Stream,
				[]string{corev1.LogStreamAll, corev1.LogStreamStdout, corev1.LogStreamStderr}))
		}
	}
	return errs
}
