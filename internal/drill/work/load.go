package work

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"barque.dev/examples"
)

// The names of what there is one of, and how much of it.
const (
	Deployment  = "web"
	StatefulSet = "set"

	replicas, surge, unavailable = 3, 1, 1
	ordinalsOfSet                = 2
	jobsAtOnce, servicesAtOnce   = 2, 12
	completions, parallelism     = 3, 2
)

const (
	answerTimeout = 3 * time.Second
	// pause is the longest between two changes by one client.
	pause = 1500 * time.Millisecond
	// label says what a pod belongs to, where that is no Job.
	label = "drill"
)

// A Load keeps controllers busy in a namespace, through clients of the virtual IP and of each server. It is for one round.
type Load struct {
	Namespace string
	Clients   []kubernetes.Interface
	Seed      uint64

	mu       sync.Mutex
	services int
	jobs     int
}

// Create makes what is there all the time. What is there already is left.
func (l *Load) Create(ctx context.Context) error {
	apps := l.Clients[0].AppsV1()
	_, err := apps.Deployments(l.Namespace).Create(ctx, l.deployment(), metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create Deployment %s: %w", Deployment, err)
	}
	_, err = apps.StatefulSets(l.Namespace).Create(ctx, l.statefulSet(), metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create StatefulSet %s: %w", StatefulSet, err)
	}
	return nil
}

// Run changes one thing after the other until ctx ends. A change that fails is not tried again: the next one comes.
func (l *Load) Run(ctx context.Context) {
	var clients sync.WaitGroup
	for i, client := range l.Clients {
		random := rand.New(rand.NewPCG(l.Seed, uint64(i)))
		clients.Go(func() {
			for ctx.Err() == nil {
				asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTimeout)
				// Services most of all, so that servers meet in choosing what they take.
				switch random.IntN(6) {
				case 0:
					_ = l.roll(asking, client, random)
				case 1:
					_ = l.deleteOrdinal(asking, client, random)
				case 2:
					_ = l.nextJob(asking, client)
				default:
					_ = l.changeServices(asking, client, random)
				}
				cancel()
				select {
				case <-ctx.Done():
				case <-time.After(time.Duration(random.Int64N(int64(pause)))):
				}
			}
		})
	}
	clients.Wait()
}

// Settled tells what is not as it should be once nothing changes any more; nil if all is.
func (l *Load) Settled(ctx context.Context) error {
	d, err := l.Clients[0].AppsV1().Deployments(l.Namespace).Get(ctx, Deployment, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if s := d.Status; s.ObservedGeneration < d.Generation || s.UpdatedReplicas != replicas || s.AvailableReplicas != replicas || s.Replicas != replicas {
		return fmt.Errorf("deployment %s is not rolled out: %+v", Deployment, s)
	}
	set, err := l.Clients[0].AppsV1().StatefulSets(l.Namespace).Get(ctx, StatefulSet, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if set.Status.ReadyReplicas != ordinalsOfSet {
		return fmt.Errorf("%d of %d pods of StatefulSet %s are ready", set.Status.ReadyReplicas, ordinalsOfSet, StatefulSet)
	}
	jobs, err := l.Clients[0].BatchV1().Jobs(l.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for i := range jobs.Items {
		if j := &jobs.Items[i]; j.Status.CompletionTime == nil && j.DeletionTimestamp == nil {
			return fmt.Errorf("job %s has counted %d of %d completions", j.Name, j.Status.Succeeded, completions)
		}
	}
	return nil
}

// roll has the Deployment replace all its pods.
func (l *Load) roll(ctx context.Context, client kubernetes.Interface, random *rand.Rand) error {
	d, err := client.AppsV1().Deployments(l.Namespace).Get(ctx, Deployment, metav1.GetOptions{})
	if err != nil {
		return err
	}
	d.Spec.Template.Annotations = map[string]string{"rolled": fmt.Sprint(random.Uint64())}
	_, err = client.AppsV1().Deployments(l.Namespace).Update(ctx, d, metav1.UpdateOptions{})
	return err
}

// deleteOrdinal deletes a pod of the StatefulSet, which comes back once it has ended.
func (l *Load) deleteOrdinal(ctx context.Context, client kubernetes.Interface, random *rand.Rand) error {
	return client.CoreV1().Pods(l.Namespace).Delete(ctx, fmt.Sprint(StatefulSet, "-", random.IntN(ordinalsOfSet)), metav1.DeleteOptions{})
}

// nextJob makes a Job if there is room, and deletes those that have ended.
func (l *Load) nextJob(ctx context.Context, client kubernetes.Interface) error {
	jobs, err := client.BatchV1().Jobs(l.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	running, background := 0, metav1.DeletePropagationBackground
	for i := range jobs.Items {
		j := &jobs.Items[i]
		if j.Status.CompletionTime == nil {
			running++
			continue
		}
		if err := client.BatchV1().Jobs(l.Namespace).Delete(ctx, j.Name, metav1.DeleteOptions{PropagationPolicy: &background}); err != nil {
			return err
		}
	}
	if running >= jobsAtOnce {
		return nil
	}
	_, err = client.BatchV1().Jobs(l.Namespace).Create(ctx, l.job(l.number(&l.jobs)), metav1.CreateOptions{})
	return err
}

// changeServices makes a Service, or deletes one.
func (l *Load) changeServices(ctx context.Context, client kubernetes.Interface, random *rand.Rand) error {
	services, err := client.CoreV1().Services(l.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	if n := len(services.Items); n > 0 && random.IntN(servicesAtOnce) < n {
		return client.CoreV1().Services(l.Namespace).Delete(ctx, services.Items[random.IntN(n)].Name, metav1.DeleteOptions{})
	}
	_, err = client.CoreV1().Services(l.Namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("service-", l.number(&l.services))},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, Selector: map[string]string{label: Deployment},
			Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}},
		},
	}, metav1.CreateOptions{})
	return err
}

func (l *Load) number(of *int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	*of++
	return *of
}

func (l *Load) deployment() *appsv1.Deployment {
	most, least := intstr.FromInt32(surge), intstr.FromInt32(unavailable)
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: Deployment},
		Spec: appsv1.DeploymentSpec{
			Replicas: new(int32(replicas)), Selector: selector(Deployment), Template: template(Deployment),
			Strategy: appsv1.DeploymentStrategy{RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &most, MaxUnavailable: &least}},
		},
	}
}

func (l *Load) statefulSet() *appsv1.StatefulSet {
	return &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: StatefulSet},
		Spec: appsv1.StatefulSetSpec{
			Replicas: new(int32(ordinalsOfSet)), Selector: selector(StatefulSet), Template: template(StatefulSet),
			ServiceName: StatefulSet, PodManagementPolicy: appsv1.ParallelPodManagement,
		},
	}
}

// job is a Job whose pods end at once: asked for help, the program says it and succeeds.
func (l *Load) job(n int) *batchv1.Job {
	t := template("job")
	t.Spec.RestartPolicy = corev1.RestartPolicyNever
	t.Spec.Containers[0].Args = []string{"-h"}
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("job-", n)},
		Spec: batchv1.JobSpec{
			Completions: new(int32(completions)), Parallelism: new(int32(parallelism)), BackoffLimit: new(int32(100)), Template: t,
		},
	}
}

func selector(of string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{label: of}}
}

// template is of a pod that ends as soon as it is told to.
func template(of string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{label: of}},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: new(int64(1)),
			Containers: []corev1.Container{{
				Name: "main", Image: examples.HelloV1, ImagePullPolicy: corev1.PullNever, Args: []string{"-drain", "0s"},
			}},
		},
	}
}
