package encryption

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"

	"barque.dev/internal/store"
)

// Paths of the control, all behind the API's authentication and authorization: GET on the first answers
// with a Status, POST on the others does what they say.
const (
	PathStatus  = "/barque/v1/encryption"
	PathRotate  = PathStatus + "/rotate"
	PathDisable = PathStatus + "/disable"
	PathRewrite = PathStatus + "/rewrite"
)

// ControlConfig is what a Control stands on.
type ControlConfig struct {
	Keyring *Keyring
	// File may be nil.
	File *File
	// Tables are those of everything that is kept, now.
	Tables func() []*store.Table
	// Fresh waits until the image is as new as anything that was acknowledged.
	Fresh func(ctx context.Context) error
	Log   *slog.Logger
}

// A Control is what administrators see of encryption.
type Control struct{ cfg ControlConfig }

// NewControl makes a control.
func NewControl(cfg ControlConfig) *Control {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Control{cfg}
}

// Handlers serve the paths.
func (c *Control) Handlers() map[string]http.Handler {
	return map[string]http.Handler{
		PathStatus: c.on(http.MethodGet, c.Status),
		PathRotate: c.on(http.MethodPost, func(ctx context.Context) (Status, error) {
			name, err := c.cfg.Keyring.Rotate(ctx)
			if err != nil {
				return Status{}, err
			}
			c.cfg.Log.Info("an encryption key was added on request", "key", name)
			return c.Status(ctx)
		}),
		PathDisable: c.on(http.MethodPost, func(ctx context.Context) (Status, error) {
			if err := c.cfg.Keyring.Disable(ctx); err != nil {
				return Status{}, err
			}
			c.cfg.Log.Warn("encryption was turned off on request")
			return c.Status(ctx)
		}),
		PathRewrite: c.on(http.MethodPost, func(ctx context.Context) (Status, error) {
			if err := c.cfg.Keyring.Rewrite(ctx); err != nil && !errors.Is(err, store.ErrExists) {
				return Status{}, err
			}
			return c.Status(ctx)
		}),
	}
}

func (c *Control) on(method string, do func(context.Context) (Status, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != method {
			w.Header().Set("Allow", method)
			http.Error(w, "only "+method+" works here", http.StatusMethodNotAllowed)
			return
		}
		err := c.cfg.Fresh(r.Context())
		var s Status
		if err == nil {
			s, err = do(r.Context())
		}
		if err != nil {
			http.Error(w, err.Error(), codeOf(err))
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(s); err != nil {
			c.cfg.Log.Debug("the status of encryption was not sent", "error", err)
		}
	})
}

func codeOf(err error) int {
	switch {
	case errors.Is(err, ErrRotating), errors.Is(err, ErrTooMany):
		return http.StatusConflict
	case errors.Is(err, ErrNone), errors.Is(err, store.ErrUnavailable):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}
