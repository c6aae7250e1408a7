package auth

import (
	authenticationmetrics "k8s.io/apiserver/pkg/server/options/authenticationconfig/metrics"
	authorizationmetrics "k8s.io/apiserver/pkg/server/options/authorizationconfig/metrics"

	"barque.dev/internal/auth/reload"
)

// authenticationFile reports how a server's AuthenticationConfiguration is reloaded, in
// stock's metrics; content is what was read at the start.
func authenticationFile(server string, content []byte) reload.Config {
	authenticationmetrics.RegisterMetrics()
	authenticationmetrics.RecordAuthenticationConfigLastConfigInfo(server, string(content))
	return reload.Config{
		Applied: func(content []byte) {
			authenticationmetrics.RecordAuthenticationConfigAutomaticReloadSuccess(server, string(content))
		},
		Failed: func() { authenticationmetrics.RecordAuthenticationConfigAutomaticReloadFailure(server) },
	}
}

// authorizationFile is authenticationFile for an AuthorizationConfiguration.
func authorizationFile(server string, content []byte) reload.Config {
	authorizationmetrics.RegisterMetrics()
	authorizationmetrics.RecordAuthorizationConfigLastConfigInfo(server, string(content))
	return reload.Config{
		Applied: func(content []byte) {
			authorizationmetrics.RecordAuthorizationConfigAutomaticReloadSuccess(server, string(content))
		},
		Failed: func() { authorizationmetrics.RecordAuthorizationConfigAutomaticReloadFailure(server) },
	}
}
