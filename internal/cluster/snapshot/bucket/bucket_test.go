package bucket

import (
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct{ name, bucket, key string }{
		{"s3://b", "b", ""},
		{"s3://b/", "b", ""},
		{"s3://b/k.tar", "b", "k.tar"},
		{"s3://b/a/b/", "b", "a/b/"},
		{"s3://b/a/b/k.tar", "b", "a/b/k.tar"},
		{"s3://", "", ""},
		{"s3:///k", "", ""},
		{"s3://b//k", "", ""},
		{"s3://b/../k", "", ""},
	} {
		bucket, key, err := Parse(tt.name)
		if bucket != tt.bucket || key != tt.key || (err == nil) != (tt.bucket != "") {
			t.Errorf("%s is bucket %q, key %q: %v", tt.name, bucket, key, err)
		}
	}
}

func TestOpen(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, cfg := range map[string]Config{
		"s3://bkt/":                {Bucket: "bkt"},
		"s3://bkt/p/":              {Bucket: "bkt", Prefix: "p", Endpoint: "http://127.0.0.1:1"},
		"s3://bkt/p/q/":            {Bucket: "bkt", Prefix: "/p/q/", Endpoint: "https://s3.example.com/"},
		"is no name of a bucket":   {Bucket: "bkt/p"},
		`"" is no name`:            {},
		"--s3-endpoint":            {Bucket: "bkt", Endpoint: "minio:9000", Flags: "--s3-"},
		"without a path":           {Bucket: "bkt", Endpoint: "https://minio:9000/path"},
		"such as https":            {Bucket: "bkt", Endpoint: "https://key:secret@minio"},
		"--s3-endpoint-ca /none":   {Bucket: "bkt", CA: "/none", Flags: "--s3-"},
		"there is no certificate ": {Bucket: "bkt", CA: empty},
	} {
		b, err := Open(cfg)
		if err != nil {
			if strings.HasPrefix(want, "s3://") || !strings.Contains(err.Error(), want) || strings.Contains(want, "secret") {
				t.Errorf("%+v: %v, want %q", cfg, err, want)
			}
			continue
		}
		if b.String() != want {
			t.Errorf("%+v is %s, want %q", cfg, b, want)
		}
		b.Close()
	}
}

// TestKeys: keys come from the file that is named, else from the environment; what is wrong is told without them.
func TestKeys(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	file := filepath.Join(t.TempDir(), "keys")
	b, err := Open(Config{Bucket: "bkt", Credentials: file, Flags: "--s3-"})
	if err != nil {
		t.Fatal(err)
	}
	id := func(b *Bucket) string {
		keys, err := b.keys()
		if err != nil {
			return err.Error()
		}
		v, err := keys.GetWithContext(nil)
		if err != nil {
			return err.Error()
		}
		return v.AccessKeyID + "/" + v.SecretAccessKey + "/" + v.SessionToken
	}
	for _, tt := range []struct{ content, want string }{
		{"", "under [default]"},
		{"[default]\naws_access_key_id = a\n", "under [default]"},
		{"[default]\naws_access_key_id = a\naws_secret_access_key = b\n", "a/b/"},
		{"[default]\naws_access_key_id = c\naws_secret_access_key = d\naws_session_token = e\n", "c/d/e"}, // they were changed meanwhile
		{"[default\naws_secret_access_key = sesame", "under [default]"},
	} {
		if err := os.WriteFile(file, []byte(tt.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := id(b); !strings.Contains(got, tt.want) || strings.Contains(got, "sesame") {
			t.Errorf("%q: %s, want %s", tt.content, got, tt.want)
		}
	}
	fromEnvironment, err := Open(Config{Bucket: "bkt", Flags: "--s3-"})
	if err != nil {
		t.Fatal(err)
	}
	if got := id(fromEnvironment); !strings.Contains(got, "--s3-credentials") || !strings.Contains(got, "AWS_ACCESS_KEY_ID") {
		t.Error(got)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "f")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "g")
	if got := id(fromEnvironment); got != "f/g/" {
		t.Error(got)
	}
}

// TestETags compares with what S3 documents: the MD5 of the object; with parts, that of the parts' MD5s and how many they are.
func TestETags(t *testing.T) {
	for _, size := range []int{0, 1, partBytes - 1, partBytes, partBytes + 1, 2*partBytes + 5} {
		content := make([]byte, size)
		_, _ = rand.Read(content)
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		sum := md5.Sum(content)
		var sums []byte
		n := 0
		for at := 0; at < size; at += partBytes {
			part := md5.Sum(content[at:min(size, at+partBytes)])
			sums = append(sums, part[:]...)
			n++
		}
		whole, parts, got, err := etags(file)
		if err != nil || got != int64(size) || whole != hex.EncodeToString(sum[:]) || parts != fmt.Sprintf("%x-%d", md5.Sum(sums), n) {
			t.Errorf("%d bytes: %s, %s of %d: %v", size, whole, parts, got, err)
		}
	}
}

// TestNobodyAnswers: a bucket that is not there is told of in a sentence.
func TestNobodyAnswers(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "a")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "b")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	b, err := Open(Config{Bucket: "backups", Endpoint: "http://" + address, Flags: "--s3-"})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := b.List(t.Context()); err == nil || !strings.Contains(err.Error(), "does not answer: see whether it runs, or correct --s3-endpoint") {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.List(ctx); err == nil {
		t.Error("who gives up is told nothing")
	}
}
