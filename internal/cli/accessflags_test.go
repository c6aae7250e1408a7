package cli

import (
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"barque.dev/internal/auth"
	"barque.dev/internal/auth/authorizers"
	"barque.dev/internal/auth/issuers"
)

// The command line and the configuration file say the same by the same names.
func TestAccessFlags(t *testing.T) {
	yes, minute, none := true, time.Minute, time.Duration(0)
	want := auth.Options{
		Anonymous: &yes,
		OIDC: issuers.Flags{
			IssuerURL: "https://i.example", ClientID: "c", CAFile: "/ca", UsernameClaim: "email", UsernamePrefix: "-", GroupsClaim: "g", GroupsPrefix: "g:",
			SigningAlgs: []string{"RS256", "ES256"}, RequiredClaims: map[string]string{"a": "b", "c": "d=e,f"},
		},
		TokenWebhook: auth.TokenWebhook{ConfigFile: "/t", Version: "v1", CacheTTL: &minute},
		FrontProxy: auth.FrontProxy{CAFile: "/p", AllowedNames: []string{"a", "b"}, UsernameHeaders: []string{"X-U"}, UIDHeaders: []string{"X-I"},
			GroupHeaders: []string{"X-G"}, ExtraPrefixes: []string{"X-E-"}},
		Authorization: authorizers.Flags{Modes: []string{"Node", "RBAC", "Webhook"}, WebhookFile: "/w", WebhookVersion: "v1", AuthorizedTTL: &none, UnauthorizedTTL: &minute},
		ServiceAccounts: auth.ServiceAccounts{Issuers: []string{"https://a.example", "https://b.example"}, KeySetURL: "https://k.example",
			Audiences: []string{"x", "z"}, MaxLifetime: 2 * time.Hour, Exact: true, Unused: 48 * time.Hour},
	}
	line := []string{
		"--anonymous-auth", "--oidc-issuer-url=https://i.example", "--oidc-client-id=c", "--oidc-ca-file=/ca", "--oidc-username-claim=email",
		"--oidc-username-prefix=-", "--oidc-groups-claim=g", "--oidc-groups-prefix=g:", "--oidc-signing-algs=RS256,ES256",
		"--oidc-required-claim=a=b", "--oidc-required-claim", "c=d=e,f",
		"--authentication-token-webhook-config-file=/t", "--authentication-token-webhook-version=v1", "--authentication-token-webhook-cache-ttl=1m",
		"--requestheader-client-ca-file=/p", "--requestheader-allowed-names=a,b", "--requestheader-username-headers=X-U", "--requestheader-uid-headers=X-I",
		"--requestheader-group-headers=X-G", "--requestheader-extra-headers-prefix=X-E-",
		"--authorization-mode=Node,RBAC,Webhook", "--authorization-webhook-config-file=/w", "--authorization-webhook-version=v1",
		"--authorization-webhook-cache-authorized-ttl=0s", "--authorization-webhook-cache-unauthorized-ttl=1m",
		"--service-account-issuer=https://a.example", "--service-account-issuer=https://b.example", "--service-account-jwks-uri=https://k.example",
		"--api-audiences=x,z", "--service-account-max-token-expiration=2h", "--service-account-extend-token-expiration=false",
		"--legacy-service-account-token-clean-up-period=48h",
	}
	file := `
anonymous-auth: true
oidc-issuer-url: https://i.example
oidc-client-id: c
oidc-ca-file: /ca
oidc-username-claim: email
oidc-username-prefix: "-"
oidc-groups-claim: g
oidc-groups-prefix: "g:"
oidc-signing-algs: [RS256, ES256]
oidc-required-claim: [a=b, "c=d=e,f"]
authentication-token-webhook-config-file: /t
authentication-token-webhook-version: v1
authentication-token-webhook-cache-ttl: 1m
requestheader-client-ca-file: /p
requestheader-allowed-names: [a, b]
requestheader-username-headers: X-U
requestheader-uid-headers: X-I
requestheader-group-headers: X-G
requestheader-extra-headers-prefix: X-E-
authorization-mode: [Node, RBAC, Webhook]
authorization-webhook-config-file: /w
authorization-webhook-version: v1
authorization-webhook-cache-authorized-ttl: 0s
authorization-webhook-cache-unauthorized-ttl: 1m
service-account-issuer: ["https://a.example", "https://b.example"]
service-account-jwks-uri: https://k.example
api-audiences: [x, z]
service-account-max-token-expiration: 2h
service-account-extend-token-expiration: false
legacy-service-account-token-clean-up-period: 48h
`
	for name, set := range map[string]func(*pflag.FlagSet) error{
		"command line": func(flags *pflag.FlagSet) error { return flags.Parse(line) },
		"file":         func(flags *pflag.FlagSet) error { return applyConfig(flags, []byte(file)) },
	} {
		var got auth.Options
		flags := pflag.NewFlagSet("server", pflag.ContinueOnError)
		accessFlags(flags, &got)
		if err := set(flags); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %+v\nwant %+v", name, got, want)
		}
	}
	var nothing auth.Options
	flags := pflag.NewFlagSet("server", pflag.ContinueOnError)
	accessFlags(flags, &nothing)
	if err := flags.Parse([]string{"--authentication-config=/a", "--authorization-config=/b"}); err != nil {
		t.Fatal(err)
	}
	if want := (auth.Options{AuthenticationConfig: "/a", AuthorizationConfig: "/b"}); !reflect.DeepEqual(nothing, want) {
		t.Errorf("%+v", nothing)
	}
	refused(t, 1, "begin with `barque service-account-key prepare`", "service-account-key", "switch", "--data-dir", t.TempDir())
	dir := t.TempDir()
	for want, args := range map[string][]string{
		"--authentication-config: open":                    {"--authentication-config", "/nonexistent"},
		"--authorization-config: open":                     {"--authorization-config", "/nonexistent"},
		"expected AuthorizationConfiguration":              {"--authorization-config", write(t, "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n")},
		"decode AuthenticationConfiguration":               {"--authentication-config", write(t, "kind: x\n")},
		"--requestheader-client-ca-file: open":             {"--requestheader-client-ca-file", "/nonexistent"},
		"--authentication-token-webhook-config-file: open": {"--authentication-token-webhook-config-file", "/nonexistent"},
	} {
		refused(t, 1, want, append([]string{"server", "--disable", "agent", "--data-dir", dir, "--bind-address", "127.0.0.1"}, args...)...)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("a start with a bad file left %v, %v", left, err)
	}
	if usage := flags.FlagUsages(); len(usage) == 0 {
		t.Error("there is no help")
	}
}
