package image

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"barque.dev/internal/agent/cri"
	"barque.dev/internal/agent/podspec"
)

// The delay after a failed pull, which doubles with each failure.
const (
	backoffInitial = 10 * time.Second
	backoffMax     = 5 * time.Minute
)

// The reasons for which a container waits for its image.
const (
	ReasonInvalidName = "InvalidImageName"
	ReasonNeverPull   = "ErrImageNeverPull"
	ReasonPull        = "ErrImagePull"
	ReasonBackoff     = "ImagePullBackOff"
	ReasonInspect     = "ImageInspectError"
)

// Error is why an image is not there. Reason is the container's API reason.
type Error struct {
	Reason  string
	Message string
	// Retry is when it may be tried again.
	Retry time.Time
}

func (e *Error) Error() string { return e.Reason + ": " + e.Message }

// Image is an image on the node.
type Image struct {
	// Ref is what the runtime calls it.
	Ref  string
	User podspec.ImageUser
}

// Wanted is an image that a pod wants, for a container or for a volume.
type Wanted struct {
	// Name is as the pod says it.
	Name string
	// Policy is by default to pull an image that is missing, and always one tagged latest.
	Policy corev1.PullPolicy
}

// Events records events about what wants the image.
type Events func(eventType, reason, format string, args ...any)

// Puller brings images. It is safe for concurrent use.
type Puller struct {
	images  cri.Images
	sources podspec.Sources
	now     func() time.Time

	mu       sync.Mutex
	failures map[string]failure
	used     map[string]time.Time
}

type failure struct {
	delay time.Duration
	until time.Time
	why   string
}

// NewPuller returns a Puller; sources give it pull secrets.
func NewPuller(images cri.Images, sources podspec.Sources, now func() time.Time) *Puller {
	return &Puller{images: images, sources: sources, now: now, failures: map[string]failure{}, used: map[string]time.Time{}}
}

// Ensure makes sure the image is there, as its pull policy says. Errors are *Error.
func (p *Puller) Ensure(ctx context.Context, pod *corev1.Pod, want Wanted, sandbox *runtimeapi.PodSandboxConfig, events Events) (Image, error) {
	named, err := Normalize(want.Name)
	if err != nil {
		events(corev1.EventTypeWarning, "InspectFailed", "Failed to apply default image tag %q: %v", want.Name, err)
		return Image{}, &Error{Reason: ReasonInvalidName, Message: fmt.Sprintf("Failed to apply default image tag %q: %v", want.Name, err), Retry: p.now().Add(backoffMax)}
	}
	policy := want.policy(named)
	have, err := p.find(ctx, named.String())
	if err != nil {
		events(corev1.EventTypeWarning, "InspectFailed", "Failed to inspect image %q: %v", want.Name, err)
		return Image{}, &Error{Reason: ReasonInspect, Message: fmt.Sprintf("Failed to inspect image %q: %v", want.Name, err), Retry: p.now().Add(backoffInitial)}
	}
	if have != nil && policy != corev1.PullAlways {
		events(corev1.EventTypeNormal, "Pulled", "Container image %q already present on machine and can be accessed by the pod", want.Name)
		return p.use(have), nil
	}
	if policy == corev1.PullNever {
		events(corev1.EventTypeWarning, "ErrImageNeverPull", "Container image %q is not present with pull policy of Never", want.Name)
		return Image{}, &Error{Reason: ReasonNeverPull, Message: fmt.Sprintf("Container image %q is not present with pull policy of Never", want.Name), Retry: p.now().Add(backoffInitial)}
	}
	return p.pull(ctx, pod, want, named, sandbox, events)
}

func (w Wanted) policy(named reference.Named) corev1.PullPolicy {
	if w.Policy != "" {
		return w.Policy
	}
	if tagged, ok := named.(reference.Tagged); ok && tagged.Tag() == "latest" {
		return corev1.PullAlways
	}
	return corev1.PullIfNotPresent
}

func (p *Puller) find(ctx context.Context, image string) (*runtimeapi.Image, error) {
	reply, err := p.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: image}})
	if cri.NotFound(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return reply.GetImage(), nil
}

func (p *Puller) use(i *runtimeapi.Image) Image {
	p.mu.Lock()
	p.used[i.GetId()] = p.now()
	p.mu.Unlock()
	out := Image{Ref: i.GetId(), User: podspec.ImageUser{Name: i.GetUsername()}}
	if uid := i.GetUid(); uid != nil {
		out.User.UID = &uid.Value
	} else if i.GetUsername() == "" {
		root := int64(0)
		out.User.UID = &root
	}
	return out
}

// pull fetches the image from its registry.
func (p *Puller) pull(ctx context.Context, pod *corev1.Pod, want Wanted, named reference.Named, sandbox *runtimeapi.PodSandboxConfig, events Events) (Image, error) {
	key := string(pod.UID) + " " + named.String()
	p.mu.Lock()
	last, failed := p.failures[key]
	p.mu.Unlock()
	if failed && p.now().Before(last.until) {
		events(corev1.EventTypeNormal, "BackOff", "Back-off pulling image %q", want.Name)
		return Image{}, &Error{Reason: ReasonBackoff, Message: fmt.Sprintf("Back-off pulling image %q: %s", want.Name, last.why), Retry: last.until}
	}
	events(corev1.EventTypeNormal, "Pulling", "Pulling image %q", want.Name)
	began := p.now()
	reply, err := p.fetch(ctx, pod, named, sandbox)
	if err != nil {
		if ctx.Err() != nil {
			return Image{}, &Error{Reason: ReasonPull, Message: ctx.Err().Error(), Retry: p.now()}
		}
		delay := min(max(2*last.delay, backoffInitial), backoffMax)
		why := fmt.Sprintf("%s: failed to pull image %q: %v", ReasonPull, want.Name, err)
		p.mu.Lock()
		p.failures[key] = failure{delay: delay, until: p.now().Add(delay), why: why}
		p.mu.Unlock()
		events(corev1.EventTypeWarning, "Failed", "Failed to pull image %q: %v", want.Name, err)
		// The next attempt finds the delay and reports it: it is due at once.
		return Image{}, &Error{Reason: ReasonPull, Message: fmt.Sprintf("failed to pull image %q: %v", want.Name, err), Retry: p.now().Add(time.Second)}
	}
	p.mu.Lock()
	delete(p.failures, key)
	p.mu.Unlock()
	image, err := p.find(ctx, reply.GetImageRef())
	if err != nil || image == nil {
		return Image{}, &Error{Reason: ReasonInspect, Message: fmt.Sprintf("image %q was pulled, but cannot be inspected: %v", want.Name, err), Retry: p.now().Add(backoffInitial)}
	}
	took := p.now().Sub(began).Round(time.Millisecond)
	events(corev1.EventTypeNormal, "Pulled", "Successfully pulled image %q in %s (%s including waiting). Image size: %d bytes.", want.Name, took, took, image.GetSize())
	return p.use(image), nil
}

// fetch tries the credentials that fit one after the other; none if none fits.
func (p *Puller) fetch(ctx context.Context, pod *corev1.Pod, named reference.Named, sandbox *runtimeapi.PodSandboxConfig) (*runtimeapi.PullImageResponse, error) {
	var keyring Keyring
	for _, ref := range pod.Spec.ImagePullSecrets {
		if ref.Name == "" {
			continue
		}
		secret, err := p.sources.Secret(pod.Namespace, ref.Name)
		if apierrors.IsNotFound(err) {
			continue // the image may not need it
		} else if err != nil {
			return nil, err
		}
		if err := keyring.Add(secret); err != nil {
			return nil, err
		}
	}
	auths := keyring.Lookup(named)
	if len(auths) == 0 {
		auths = []*runtimeapi.AuthConfig{nil}
	}
	var failures []error
	for _, auth := range auths {
		reply, err := p.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: named.String()}, Auth: auth, SandboxConfig: sandbox})
		if err == nil {
			return reply, nil
		}
		failures = append(failures, err)
	}
	return nil, errors.Join(failures...)
}

// Drop forgets the failures of a pod that is gone.
func (p *Puller) Drop(uid string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key := range p.failures {
		if strings.HasPrefix(key, uid+" ") {
			delete(p.failures, key)
		}
	}
}
