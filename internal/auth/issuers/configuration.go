package issuers

import (
	"errors"
	"fmt"
	"os"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/apis/apiserver/install"
	"k8s.io/apiserver/pkg/apis/apiserver/validation"
	authenticationcel "k8s.io/apiserver/pkg/authentication/cel"
)

// Load reads an AuthenticationConfiguration of any version that stock reads, strictly: an
// unknown or repeated field is an error. It is checked ([Check]).
func Load(content []byte, own []string) (*apiserver.AuthenticationConfiguration, error) {
	if len(content) == 0 {
		return nil, errors.New("it is empty")
	}
	scheme := runtime.NewScheme()
	install.Install(scheme)
	codecs := serializer.NewCodecFactory(scheme, serializer.EnableStrict)
	obj, err := runtime.Decode(codecs.UniversalDecoder(), content)
	if err != nil {
		return nil, fmt.Errorf("decode AuthenticationConfiguration: %w", err)
	}
	conf, ok := obj.(*apiserver.AuthenticationConfiguration)
	if !ok {
		return nil, fmt.Errorf("it holds a %T, not an AuthenticationConfiguration", obj)
	}
	return conf, Check(conf, own)
}

// Check tells what is wrong with a configuration. own are the issuers of service account tokens.
func Check(conf *apiserver.AuthenticationConfiguration, own []string) error {
	return validation.ValidateAuthenticationConfiguration(authenticationcel.NewDefaultCompiler(), conf, own).ToAggregate()
}

// Flags are the classic description of one issuer, with stock's names and meaning.
type Flags struct {
	IssuerURL, ClientID string
	// CAFile holds the authority of the issuer's certificate in PEM; empty for the machine's.
	CAFile string
	// UsernameClaim names the user; "sub" by default.
	UsernameClaim string
	// UsernamePrefix comes before the name. By default it is the issuer's URL and "#", except for
	// the claim "email"; "-" is none.
	UsernamePrefix            string
	GroupsClaim, GroupsPrefix string
	// SigningAlgs are JWS algorithms; RS256 by default.
	SigningAlgs []string
	// RequiredClaims must be in a token with these values.
	RequiredClaims map[string]string
}

// Set tells whether any flag was given.
func (f *Flags) Set() bool {
	return f.IssuerURL != "" || f.ClientID != "" || f.CAFile != "" || f.UsernameClaim != "" || f.UsernamePrefix != "" ||
		f.GroupsClaim != "" || f.GroupsPrefix != "" || len(f.SigningAlgs) > 0 || len(f.RequiredClaims) > 0
}

// Check tells whether half of what is needed was given.
func (f *Flags) Check() error {
	if f.Set() && (f.IssuerURL == "" || f.ClientID == "") {
		return errors.New("--oidc-issuer-url and --oidc-client-id are both needed when any --oidc-* flag is given")
	}
	return nil
}

// Algorithms are those that tokens may be signed with.
func (f *Flags) Algorithms() []string {
	if len(f.SigningAlgs) == 0 {
		return []string{"RS256"}
	}
	return f.SigningAlgs
}

// Configuration is what the flags mean, checked. own are the issuers of service account tokens.
func (f *Flags) Configuration(own []string) (*apiserver.AuthenticationConfiguration, error) {
	if err := f.Check(); err != nil {
		return nil, err
	}
	jwt := apiserver.JWTAuthenticator{
		Issuer:        apiserver.Issuer{URL: f.IssuerURL, Audiences: []string{f.ClientID}},
		ClaimMappings: apiserver.ClaimMappings{Username: f.username()},
	}
	if f.GroupsClaim != "" {
		jwt.ClaimMappings.Groups = apiserver.PrefixedClaimOrExpression{Claim: f.GroupsClaim, Prefix: &f.GroupsPrefix}
	}
	if f.CAFile != "" {
		pem, err := os.ReadFile(f.CAFile)
		if err != nil {
			return nil, fmt.Errorf("--oidc-ca-file: %w", err)
		}
		jwt.Issuer.CertificateAuthority = string(pem)
	}
	for claim, value := range f.RequiredClaims {
		jwt.ClaimValidationRules = append(jwt.ClaimValidationRules, apiserver.ClaimValidationRule{Claim: claim, RequiredValue: value})
	}
	conf := &apiserver.AuthenticationConfiguration{JWT: []apiserver.JWTAuthenticator{jwt}}
	if err := Check(conf, own); err != nil {
		return nil, fmt.Errorf("--oidc-*: %w", err)
	}
	return conf, nil
}

func (f *Flags) username() apiserver.PrefixedClaimOrExpression {
	claim, prefix := f.UsernameClaim, f.UsernamePrefix
	if claim == "" {
		claim = "sub"
	}
	switch {
	case prefix == "-":
		prefix = ""
	case prefix == "" && claim != "email":
		prefix = f.IssuerURL + "#"
	}
	return apiserver.PrefixedClaimOrExpression{Claim: claim, Prefix: &prefix}
}
