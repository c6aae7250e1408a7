package webhook

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/informers/admissionregistration"
	admissioninformers "k8s.io/client-go/informers/admissionregistration/v1"
	"k8s.io/client-go/informers/core"
	coreinformers "k8s.io/client-go/informers/core/v1"
	admissionlisters "k8s.io/client-go/listers/admissionregistration/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"barque.dev/internal/admission/state"
)

// factory is as much of client-go's informers as the stock plugins use: listers of three kinds and
// the news of two, with the image behind them. What it and its parts embed is nil: should a release
// of the library ask for more, the tests of this package fail.
type factory struct {
	informers.SharedInformerFactory
	namespaces state.Namespaces
	mutating   *configurations[*admissionv1.MutatingWebhookConfiguration]
	validating *configurations[*admissionv1.ValidatingWebhookConfiguration]
}

func (f factory) Core() core.Interface { return coreGroup{factory: f} }

func (f factory) Admissionregistration() admissionregistration.Interface {
	return admissionGroup{factory: f}
}

type coreGroup struct {
	core.Interface
	factory factory
}

func (g coreGroup) V1() coreinformers.Interface { return coreV1{factory: g.factory} }

type coreV1 struct {
	coreinformers.Interface
	factory factory
}

func (v coreV1) Namespaces() coreinformers.TypedNamespaceInformer {
	return namespaces{lister: v.factory.namespaces}
}

type namespaces struct {
	coreinformers.TypedNamespaceInformer
	lister corelisters.NamespaceLister
}

func (n namespaces) Lister() corelisters.NamespaceLister { return n.lister }
func (n namespaces) Informer() cache.SharedIndexInformer { return state.Synced{} }

type admissionGroup struct {
	admissionregistration.Interface
	factory factory
}

func (g admissionGroup) V1() admissioninformers.Interface { return admissionV1{factory: g.factory} }

type admissionV1 struct {
	admissioninformers.Interface
	factory factory
}

func (v admissionV1) MutatingWebhookConfigurations() admissioninformers.TypedMutatingWebhookConfigurationInformer {
	return mutatingInformer{lister: v.factory.mutating}
}

func (v admissionV1) ValidatingWebhookConfigurations() admissioninformers.TypedValidatingWebhookConfigurationInformer {
	return validatingInformer{lister: v.factory.validating}
}

type mutatingInformer struct {
	admissioninformers.TypedMutatingWebhookConfigurationInformer
	lister *configurations[*admissionv1.MutatingWebhookConfiguration]
}

func (i mutatingInformer) Informer() cache.SharedIndexInformer { return informer{news: i.lister} }

func (i mutatingInformer) Lister() admissionlisters.MutatingWebhookConfigurationLister {
	return mutatingLister{configurations: i.lister}
}

type mutatingLister struct {
	admissionlisters.MutatingWebhookConfigurationListerExpansion
	*configurations[*admissionv1.MutatingWebhookConfiguration]
}

type validatingInformer struct {
	admissioninformers.TypedValidatingWebhookConfigurationInformer
	lister *configurations[*admissionv1.ValidatingWebhookConfiguration]
}

func (i validatingInformer) Informer() cache.SharedIndexInformer { return informer{news: i.lister} }

func (i validatingInformer) Lister() admissionlisters.ValidatingWebhookConfigurationLister {
	return validatingLister{configurations: i.lister}
}

type validatingLister struct {
	admissionlisters.ValidatingWebhookConfigurationListerExpansion
	*configurations[*admissionv1.ValidatingWebhookConfiguration]
}

// informer passes handlers on.
type informer struct {
	state.Synced
	news interface {
		AddEventHandler(cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error)
	}
}

func (i informer) AddEventHandler(handler cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	return i.news.AddEventHandler(handler)
}

// synced is the registration of a handler that has heard of all there is.
type synced struct{}

var _ cache.ResourceEventHandlerRegistration = synced{}

func (synced) HasSynced() bool                       { return true }
func (s synced) HasSyncedChecker() cache.DoneChecker { return s }
func (synced) Name() string                          { return "image" }

func (synced) Done() <-chan struct{} {
	done := make(chan struct{})
	close(done)
	return done
}
