// Package encryption encrypts objects at rest, in etcd.
//
// Unless told otherwise, Secrets are encrypted with a key of the cluster's own, in kube-apiserver's
// format (the secretbox provider), so that a stock server with the same keys reads them. The keys are a
// [Ring], a record in etcd, each sealed by a secret that is derived from the key of the cluster's
// authority: every server has that, and nobody who has etcd's data alone. So keys and data travel
// together: whichever state of etcd a server has, it has the keys of all that is in it. A [Keyring] is a
// server's view of the record.
//
// Every value is written on the condition that the record is still the one it was encrypted by
// (store.Guarder): a server that lags or stands still can't write with a key that was replaced, let
// alone dropped. Together this makes each change of the record safe by itself, whoever dies when:
//
//	rotate   a new key is added, to be used next
//	promote  once every server has noted in etcd that it has the key, it is the one to write with
//	rewrite  the leader writes again what stands under other keys, or plainly (Rewriter)
//	drop     a key that nothing in etcd needs any more, its history included, is removed
//
// The second step is the first of all when a cluster begins to encrypt: as long as a server does not
// know of encryption (an older one, or a stock kube-apiserver on the same etcd), nothing is encrypted.
//
// A [File] is an EncryptionConfiguration of the user's, for whatever resources it names.
//
// docs/adr/0003-encryption-at-rest.md says why.
package encryption
