// Package join lets machines into the cluster: a token says that they may, and says which
// cluster it is, so that neither side can be fooled.
//
// A token is a stock bootstrap token, "<id>.<secret>", kept as the Secret bootstrap-token-<id>
// in kube-system, with the hash of the cluster's CA before it: "bq1.<hash>.<id>.<secret>". Who
// joins first asks any server for the CA over an unchecked connection, compares its hash, and
// only then, over a connection checked against that CA, shows the token.
//
// A server that was a member before, and was removed while it was away, has the cluster's keys: it shows a certificate
// instead of a token.
//
// A joining server receives the cluster's keys and is added to etcd as a learner. A joining
// agent receives the CA and the cluster's facts; its certificate it requests from the API with
// the same token, as a stock kubelet does.
package join

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
)

const (
	tokenVersion = "bq1"
	idLength     = 6
	secretLength = 16
	alphabet     = "abcdefghijklmnopqrstuvwxyz0123456789"
)

// A Token is what a machine joins with.
type Token struct {
	// CAHash is the lower-case hex SHA-256 of the cluster CA's certificate in DER. It is
	// empty in a plain stock token, which needs the CA from elsewhere.
	CAHash string
	// ID names the token and is not secret.
	ID string
	// Secret proves it.
	Secret string
}

// NewToken makes a token for the cluster whose CA has the hash.
func NewToken(caHash string) (Token, error) {
	id, err := randomText(idLength)
	if err != nil {
		return Token{}, err
	}
	secret, err := randomText(secretLength)
	if err != nil {
		return Token{}, err
	}
	return Token{CAHash: caHash, ID: id, Secret: secret}, nil
}

func randomText(n int) (string, error) {
	out := make([]byte, n)
	for i := range out {
		k, err := rand.Int(rand.Reader, big.NewInt(int64(len(alphabet))))
		if err != nil {
			return "", fmt.Errorf("make token: %w", err)
		}
		out[i] = alphabet[k.Int64()]
	}
	return string(out), nil
}

// ParseToken reads both forms of a token.
func ParseToken(text string) (Token, error) {
	text = strings.TrimSpace(text)
	parts := strings.Split(text, ".")
	var t Token
	switch {
	case len(parts) == 4 && parts[0] == tokenVersion:
		t = Token{CAHash: parts[1], ID: parts[2], Secret: parts[3]}
		if b, err := hex.DecodeString(t.CAHash); err != nil || len(b) != sha256.Size || strings.ToLower(t.CAHash) != t.CAHash {
			return Token{}, errors.New("the token is damaged: its second part is not the hash of a CA; copy it again in full")
		}
	case len(parts) == 2:
		t = Token{ID: parts[0], Secret: parts[1]}
	default:
		return Token{}, errors.New("the token is damaged: it should look like bq1.<hash>.<id>.<secret>; copy it again in full")
	}
	if !isText(t.ID, idLength) || !isText(t.Secret, secretLength) {
		return Token{}, fmt.Errorf("the token is damaged: it should end in an id of %d and a secret of %d letters and digits; copy it again in full",
			idLength, secretLength)
	}
	return t, nil
}

func isText(s string, n int) bool {
	return len(s) == n && strings.Trim(s, alphabet) == ""
}

// String returns the token in full. It is a secret.
func (t Token) String() string {
	if t.CAHash == "" {
		return t.Stock()
	}
	return strings.Join([]string{tokenVersion, t.CAHash, t.ID, t.Secret}, ".")
}

// Stock returns the token as a stock cluster knows it, such as for an Authorization header.
func (t Token) Stock() string { return t.ID + "." + t.Secret }

// HashOfPEM returns the hash of the first certificate of a PEM text.
func HashOfPEM(text []byte) (string, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return "", errors.New("it holds no certificate in PEM")
	}
	sum := sha256.Sum256(block.Bytes)
	return hex.EncodeToString(sum[:]), nil
}
