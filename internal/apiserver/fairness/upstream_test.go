package fairness

import (
	"context"
	"testing"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/user"
	upstream "k8s.io/apiserver/pkg/util/flowcontrol"
	upstreamrequest "k8s.io/apiserver/pkg/util/flowcontrol/request"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
)

// BenchmarkUpstream is BenchmarkAdmit for upstream's machinery, with the same objects: what there is to compare with.
func BenchmarkUpstream(b *testing.B) {
	var objects []runtime.Object
	for _, pl := range stockLevels() {
		objects = append(objects, pl.DeepCopy())
	}
	for _, fs := range stockSchemas() {
		objects = append(objects, fs.DeepCopy())
	}
	client := fake.NewSimpleClientset(objects...)
	factory := informers.NewSharedInformerFactory(client, 0)
	control := upstream.New(factory, client.FlowcontrolV1(), 600)
	stop := make(chan struct{})
	factory.Start(stop)
	done := make(chan error, 1)
	go func() { done <- control.Run(stop) }()
	defer func() {
		close(stop)
		if err := <-done; err != nil {
			b.Error(err)
		}
		factory.Shutdown()
	}()
	info := resourceInfo("get", "", "pods", "ns", "p")
	handle := func(who user.Info) (schema string) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		control.Handle(ctx, upstream.RequestDigest{RequestInfo: info, User: who},
			func(fs *flowcontrolv1.FlowSchema, _ *flowcontrolv1.PriorityLevelConfiguration, _ string) {
				schema = fs.Name
			},
			func() upstreamrequest.WorkEstimate { return upstreamrequest.WorkEstimate{InitialSeats: 1} },
			func(bool) {}, func() {})
		return schema
	}
	waitFor(b, func() bool { return handle(alice) == "global-default" })
	for name, who := range map[string]user.Info{"user": alice, "node": node, "exempt": admin} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					handle(who)
				}
			})
		})
	}
}
