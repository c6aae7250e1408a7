package bucket

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"

	"github.com/minio/minio-go/v7"
)

// advise makes a sentence of an error of the client's that says what to do.
func (b *Bucket) advise(what string, err error) error {
	if err == nil {
		return nil
	}
	if told := b.told(err); told != "" {
		return fmt.Errorf("%s: %s", what, told)
	}
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var connection *net.OpError
	var request *url.Error
	switch {
	case errors.Is(err, errDiffers), errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: %w", what, err)
	case errors.As(err, &unknown), errors.As(err, &name):
		return fmt.Errorf("%s: the certificate of %s is not to be trusted: give its authority with %sendpoint-ca (%w)", what, b.endpoint, b.cfg.Flags, err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %s is too slow: see whether it is well, and the way to it (%w)", what, b.endpoint, err)
	case errors.As(err, &connection), errors.As(err, &request):
		return fmt.Errorf("%s: %s does not answer: see whether it runs, or correct %sendpoint (%w)", what, b.endpoint, b.cfg.Flags, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// told is what a server's answer means; "" for what has to speak for itself.
func (b *Bucket) told(err error) string {
	var answer minio.ErrorResponse
	if !errors.As(err, &answer) {
		return ""
	}
	switch answer.Code {
	case minio.NoSuchBucket:
		return fmt.Sprintf("%s has no bucket %s: make it, or correct its name", b.endpoint, b.cfg.Bucket)
	case minio.NoSuchKey:
		return fmt.Sprintf("it is not there: `barque snapshot list %s` shows what is", b)
	case minio.AccessDenied:
		return fmt.Sprintf("the keys may not do that: they need s3:ListBucket of the bucket %s, and s3:GetObject, s3:PutObject and s3:DeleteObject in it", b.cfg.Bucket)
	case minio.InvalidAccessKeyID, minio.SignatureDoesNotMatch, "ExpiredToken", "InvalidToken", "XAdminUserNotFound": // the last is versitygw's
		return fmt.Sprintf("%s does not take the keys (%s): correct those in %scredentials or in the environment", b.endpoint, answer.Code, b.cfg.Flags)
	case "AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException":
		return fmt.Sprintf("the bucket %s is not in region %s: give its own with %sregion (%s)", b.cfg.Bucket, b.cfg.Region, b.cfg.Flags, answer.Message)
	case "RequestTimeTooSkewed":
		return fmt.Sprintf("the clocks of this machine and of %s differ too much: set them right", b.endpoint)
	}
	return ""
}
