package join

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// maxRequest bounds a request's body in bytes.
	maxRequest = 64 << 10
	// attempts and burst bound how often one address may try, per second.
	attempts, burst = 5, 20
	// addresses bounds how many addresses are remembered for that.
	addresses = 1024
	// answerTimeout bounds how long adding a member may take.
	answerTimeout = 20 * time.Second
)

// HandlerConfig is what the serving side stands on.
type HandlerConfig struct {
	// Reader reads the tokens' Secrets, consistently or from the local image.
	Reader client.Reader
	// CA is the cluster's CA in PEM.
	CA []byte
	// Keys returns the cluster's keys (a pki.Bundle in JSON) for a server.
	Keys func() (json.RawMessage, error)
	// Facts returns what holds now.
	Facts func(ctx context.Context) (Facts, error)
	// MayJoin refuses a server that would not understand what is in etcd; nil refuses nobody. Its errors
	// may wrap ErrTryAgain or ErrConflict.
	MayJoin func(req ServerRequest) error
	// Returning names the server that a request comes from by its certificate, which does instead of a token; "" is
	// nobody. MayReturn refuses one; its errors may wrap ErrTryAgain or ErrConflict. Both may be nil.
	Returning func(r *http.Request) string
	MayReturn func(ctx context.Context, req ServerRequest) error
	// AddMember adds a server to etcd as a learner, or finds it there when it has been added
	// before, and returns all members. It may be nil when etcd runs elsewhere. Its errors
	// may wrap ErrTryAgain or ErrConflict.
	AddMember func(ctx context.Context, req ServerRequest) ([]Member, error)
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	Log *slog.Logger
}

// Handler is the serving side, to be mounted at PathPrefix outside the API's authentication:
// it has its own. It is safe for concurrent use.
type Handler struct {
	config   HandlerConfig
	limiters *lru.Cache[string, *rate.Limiter]
	mux      *http.ServeMux
}

// NewHandler checks the configuration.
func NewHandler(config HandlerConfig) (*Handler, error) {
	if config.Reader == nil || config.Keys == nil || config.Facts == nil {
		return nil, errors.New("configure joining: a reader, keys and facts are needed")
	}
	if _, err := HashOfPEM(config.CA); err != nil {
		return nil, fmt.Errorf("configure joining: the CA: %w", err)
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	limiters, err := lru.New[string, *rate.Limiter](addresses)
	if err != nil {
		return nil, fmt.Errorf("configure joining: %w", err)
	}
	h := &Handler{config: config, limiters: limiters, mux: http.NewServeMux()}
	h.mux.HandleFunc("GET "+PathCA, h.ca)
	h.mux.HandleFunc("POST "+PathServer, h.guarded(UsageServer, h.server))
	h.mux.HandleFunc("GET "+PathAgent, h.guarded(UsageAgent, h.agent))
	return h, nil
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !h.limiter(r).Allow() {
		refuse(w, &Refusal{Code: CodeTooMany, Message: "too many attempts to join from this address; wait a few seconds"})
		return
	}
	h.mux.ServeHTTP(w, r)
}

func (h *Handler) limiter(r *http.Request) *rate.Limiter {
	address, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		address = r.RemoteAddr
	}
	fresh := rate.NewLimiter(attempts, burst)
	if old, ok, _ := h.limiters.PeekOrAdd(address, fresh); ok {
		return old
	}
	return fresh
}

func (h *Handler) ca(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/x-pem-file")
	_, _ = w.Write(h.config.CA)
}

type answer func(ctx context.Context, r *http.Request) (any, error)

// guarded lets requests through whose token is good for the usage.
func (h *Handler) guarded(usage Usage, next answer) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
		defer cancel()
		log := h.config.Log.With("usage", usage, "remote", r.RemoteAddr)
		token, refusal := h.authenticate(ctx, r, usage)
		if refusal != nil {
			log.Warn("machine refused", "reason", refusal.Code)
			refuse(w, refusal)
			return
		}
		log = log.With("token", token.ID)
		body, err := next(ctx, r)
		if err != nil {
			var refusal *Refusal
			if !errors.As(err, &refusal) {
				refusal = refusalOf(err)
			}
			log.Warn("machine could not join", "error", err)
			refuse(w, refusal)
			return
		}
		log.Info("machine joins")
		w.Header().Set("Cache-Control", "no-store")
		respond(w, http.StatusOK, body)
	}
}

// returning names the server that comes back by its certificate.
func (h *Handler) returning(r *http.Request) string {
	if h.config.Returning == nil || r.Header.Get("Authorization") != "" {
		return ""
	}
	return h.config.Returning(r)
}

// mayReturn refuses who comes back by a certificate, under another name or for a reason of the configuration's.
func (h *Handler) mayReturn(ctx context.Context, r *http.Request, req ServerRequest) error {
	name := h.returning(r)
	switch {
	case name == "":
		return nil
	case req.Name != name:
		return &Refusal{Code: CodeConflict, Message: fmt.Sprintf("the certificate is that of server %s: another name needs a token, and an empty data directory", name)}
	case h.config.MayReturn == nil:
		return nil
	}
	return h.config.MayReturn(ctx, req)
}

func (h *Handler) authenticate(ctx context.Context, r *http.Request, usage Usage) (Token, *Refusal) {
	if name := h.returning(r); name != "" && usage == UsageServer {
		return Token{ID: name}, nil
	}
	text, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	token, err := ParseToken(text)
	if !ok || err != nil {
		return token, &Refusal{Code: CodeUnknownToken, Message: "joining needs a token; make one on a server with: barque token create"}
	}
	var secret *corev1.Secret
	var found corev1.Secret
	err = h.config.Reader.Get(ctx, client.ObjectKey{Namespace: metav1.NamespaceSystem, Name: secretPrefix + token.ID}, &found)
	switch {
	case err == nil:
		secret = &found
	case !apierrors.IsNotFound(err):
		return token, &Refusal{Code: CodeTryAgain, Message: fmt.Sprintf("the server cannot check the token now: %v", err)}
	}
	return token, check(secret, token, usage, h.config.Now())
}

func (h *Handler) agent(ctx context.Context, _ *http.Request) (any, error) {
	return h.config.Facts(ctx)
}

func (h *Handler) server(ctx context.Context, r *http.Request) (any, error) {
	var req ServerRequest
	decoder := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxRequest))
	if err := decoder.Decode(&req); err != nil {
		return nil, &Refusal{Code: CodeBadRequest, Message: fmt.Sprintf("the request to join cannot be read: %v", err)}
	}
	if err := h.mayReturn(ctx, r, req); err != nil {
		return nil, err
	}
	if (req.Name == "") != (req.PeerURL == "") {
		return nil, &Refusal{Code: CodeBadRequest, Message: "a server joins with a name and a peer URL"}
	}
	if h.config.MayJoin != nil {
		if err := h.config.MayJoin(req); err != nil {
			return nil, err
		}
	}
	facts, err := h.config.Facts(ctx)
	if err != nil {
		return nil, err
	}
	keys, err := h.config.Keys()
	if err != nil {
		return nil, err
	}
	response := ServerResponse{Facts: facts, Keys: keys}
	if req.Name != "" {
		if h.config.AddMember == nil {
			return nil, &Refusal{Code: CodeBadRequest, Message: "this cluster's etcd runs outside of it; start the server with the same --etcd-endpoints"}
		}
		// Last: whoever cannot be added gets no keys.
		if response.Members, err = h.config.AddMember(ctx, req); err != nil {
			return nil, err
		}
	}
	return response, nil
}

func refuse(w http.ResponseWriter, r *Refusal) {
	status := http.StatusInternalServerError
	switch r.Code {
	case CodeUnknownToken, CodeExpiredToken:
		status = http.StatusUnauthorized
	case CodeWrongUsage:
		status = http.StatusForbidden
	case CodeTooMany:
		status = http.StatusTooManyRequests
	case CodeTryAgain:
		status = http.StatusServiceUnavailable
	case CodeBadRequest:
		status = http.StatusBadRequest
	case CodeConflict:
		status = http.StatusConflict
	}
	respond(w, status, r)
}

func respond(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}
